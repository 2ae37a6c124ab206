"""Storage commitment on SQL and on the wire."""

from __future__ import annotations

import logging
import ssl
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance  # type: ignore[attr-defined]  # made at import

from dicom_listener.adapters.tables import commitments, instances
from dicom_listener.adapters.transport import Requested
from dicom_listener.domain.commitment import Reference, Verdict
from dicom_listener.handlers.commit import LONGEST_PAUSE_S, Commitment
from dicom_listener.ports import Peer
from pipeline.database import Database
from pipeline.errors import TransientError

log = logging.getLogger(__name__)

_ALL_SAFE, _SOME_FAILED = 1, 2  # event types, PS3.4 table J.3-2
_CHUNK = 500


class SqlCommitments:
    """Implements `handlers.commit.Commitments`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, transaction_uid: str, peer: Peer, requested: Sequence[Reference], now: datetime) -> int:
        """Write a request down, or find it if the same sender asked the same before and waits still."""
        t = commitments.c
        references = [[each.sop_class_uid, each.sop_instance_uid] for each in requested]
        with self._database.write() as connection:
            waiting = connection.scalar(
                sa.select(t.id).where(
                    t.transaction_uid == transaction_uid,
                    t.calling_ae_title == peer.calling_ae_title,
                    t.done_at.is_(None),
                )
            )
            if waiting is not None:
                connection.execute(
                    commitments.update().where(t.id == waiting).values(requested=references, next_attempt_at=now)
                )
                return int(waiting)
            return int(
                connection.execute(
                    commitments.insert()
                    .values(
                        transaction_uid=transaction_uid,
                        calling_ae_title=peer.calling_ae_title,
                        called_ae_title=peer.called_ae_title,
                        address=peer.address,
                        requested=references,
                        created_at=now,
                        next_attempt_at=now,
                        attempts=0,
                    )
                    .returning(t.id)
                ).scalar_one()
            )

    def due(self, now: datetime, limit: int) -> Sequence[Commitment]:
        """Of up to `limit` senders, the one whose result has been due longest.

        Nothing is put off for longer than the longest pause: what seems to be, was by a clock that has been set back.
        """
        t = commitments.c
        latest = now + timedelta(seconds=LONGEST_PAUSE_S)
        place = sa.func.row_number().over(partition_by=t.calling_ae_title, order_by=t.next_attempt_at)
        ranked = (
            sa.select(t.id, place.label("place"))
            .where(t.done_at.is_(None), (t.next_attempt_at <= now) | (t.next_attempt_at > latest))
            .subquery()
        )
        first = sa.select(ranked.c.id).where(ranked.c.place == 1)
        query = sa.select(commitments).where(t.id.in_(first)).order_by(t.next_attempt_at).limit(limit)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [
            Commitment(
                id=row.id,
                transaction_uid=row.transaction_uid,
                peer=Peer(row.calling_ae_title, row.called_ae_title, row.address),
                requested=tuple(Reference(*pair) for pair in row.requested),
                created_at=row.created_at,
                attempts=row.attempts,
            )
            for row in rows
        ]

    def objects(self, sop_instance_uids: Sequence[str]) -> Sequence[tuple[str, str, str]]:
        """(SOP Instance UID, SOP Class UID, object key) of indexed objects."""
        t = instances.c
        found: list[tuple[str, str, str]] = []
        with self._database.read() as connection:
            for start in range(0, len(sop_instance_uids), _CHUNK):
                query = sa.select(t.sop_instance_uid, t.sop_class_uid, t.object_key).where(
                    t.sop_instance_uid.in_(sop_instance_uids[start : start + _CHUNK])
                )
                found += [(row[0], row[1], row[2]) for row in connection.execute(query)]
        return found

    def postpone(self, id_: int, until: datetime) -> None:
        """The sender did not take the result."""
        t = commitments.c
        with self._database.write() as connection:
            connection.execute(
                commitments.update().where(t.id == id_).values(attempts=t.attempts + 1, next_attempt_at=until)
            )

    def finish(self, id_: int, outcome: str, now: datetime) -> None:
        """The sender took it, or nobody will."""
        with self._database.write() as connection:
            connection.execute(commitments.update().where(commitments.c.id == id_).values(done_at=now, outcome=outcome))

    def forget(self, before: datetime) -> None:
        """Delete what was finished longer ago."""
        with self._database.write() as connection:
            connection.execute(commitments.delete().where(commitments.c.done_at < before))


@dataclass(frozen=True)
class PeerAddress:
    """Where another application entity listens."""

    host: str
    port: int
    tls: bool = False


class Elsewhere(ABC):
    """An association that another process holds."""

    @property
    @abstractmethod
    def is_established(self) -> bool:
        """Whether it can be used."""

    @abstractmethod
    def report(self, commitment: Commitment, verdict: Verdict) -> bool:
        """Whether the sender has taken the result. Raises `RuntimeError`, `OSError` or `TransientError`."""


class DimseReporter:
    """N-EVENT-REPORT on a new association where the sender's address is known, else on the one that it asked on."""

    def __init__(self, peers: Mapping[str, PeerAddress], tls: ssl.SSLContext | None, timeout_seconds: float) -> None:
        self._peers = peers
        self._tls = tls
        self._timeout = timeout_seconds
        self._requested = Requested()
        self._lock = threading.Lock()
        self._asked_on: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def interrupt(self) -> None:
        """The listener stops: wait for nobody. Who did not take a result is told again."""
        self._requested.interrupt()

    def asked_on(self, id_: int, association: object) -> None:
        """The request came on this association."""
        with self._lock:
            self._asked_on[id_] = association

    def report(self, commitment: Commitment, verdict: Verdict) -> bool:
        """Whether the sender has taken the result."""
        address = self._peers.get(commitment.peer.calling_ae_title)
        if address is not None:
            return self._sent(lambda: self._on_new(address, commitment, verdict))
        with self._lock:
            assoc = self._asked_on.get(commitment.id)
        return self.report_on(assoc, commitment, verdict)

    def report_on(self, assoc: Any | None, commitment: Commitment, verdict: Verdict) -> bool:
        """Whether the sender has taken the result on this association, None if it has ended."""
        if assoc is None or not assoc.is_established:
            return False
        if isinstance(assoc, Elsewhere):
            return self._sent(lambda: assoc.report(commitment, verdict))
        return self._sent(lambda: self._send(assoc, commitment, verdict))

    @staticmethod
    def _sent(send: Callable[[], bool]) -> bool:
        try:
            return send()
        except (RuntimeError, ValueError, OSError, TransientError) as error:  # what pynetdicom raises, and `Elsewhere`
            log.info("storage commitment not taken", extra={"error": type(error).__name__})
            return False

    def _on_new(self, address: PeerAddress, commitment: Commitment, verdict: Verdict) -> bool:
        ae = AE(ae_title=commitment.peer.called_ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = self._timeout
        ae.add_requested_context(StorageCommitmentPushModel)
        with self._requested.one() as handlers:
            assoc = ae.associate(
                address.host,
                address.port,
                ae_title=commitment.peer.calling_ae_title,
                ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)],
                tls_args=(self._tls, address.host) if address.tls and self._tls is not None else None,
                evt_handlers=handlers,
            )
            if not assoc.is_established:
                return False
            try:
                return self._send(assoc, commitment, verdict)
            finally:
                assoc.release()

    def _send(self, assoc: Any, commitment: Commitment, verdict: Verdict) -> bool:
        status, _ = assoc.send_n_event_report(
            event_information(commitment.transaction_uid, verdict),
            _SOME_FAILED if verdict.failed else _ALL_SAFE,
            StorageCommitmentPushModel,
            StorageCommitmentPushModelInstance,
        )
        return "Status" in status and status.Status == 0


def event_information(transaction_uid: str, verdict: Verdict) -> Dataset:
    """The data set of the N-EVENT-REPORT (PS3.4 table J.3-3)."""
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    if verdict.committed:
        ds.ReferencedSOPSequence = [_item(reference) for reference in verdict.committed]
    if verdict.failed:
        items = []
        for reference, reason in verdict.failed:
            item = _item(reference)
            item.FailureReason = reason
            items.append(item)
        ds.FailedSOPSequence = items
    return ds


def _item(reference: Reference) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    return item
