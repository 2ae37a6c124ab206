"""An object arrives: check, make durable, index, and only then acknowledge."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection

from dicom_listener import metrics
from dicom_listener.domain.header import ObjectHeader
from dicom_listener.domain.refusals import SUCCESS, Reason, Refused
from dicom_listener.domain.uids import is_uid
from dicom_listener.domain.watermark import Watermark
from dicom_listener.handlers.sweep import UnderWay
from dicom_listener.ports import (
    Association,
    CarriedStudies,
    Index,
    Peer,
    Refusal,
    Refusals,
    StagedFile,
    StoredObject,
)
from pipeline.clock import Clock, iso
from pipeline.database import is_transient
from pipeline.errors import ObjectStoreUnavailable
from pipeline.store import ObjectStore
from pipeline.telemetry import study_ref

log = logging.getLogger(__name__)


def object_key(sha256: str) -> str:
    """Where an object lies: a hashed prefix, never a peer's text. A new folder costs as much as the object does."""
    return f"objects/{sha256[:2]}/{sha256}.dcm"


class Receiver:
    """The decisions of both doors. One instance for all associations and requests; called from their threads."""

    def __init__(
        self,
        store: ObjectStore,
        ledger: Index,
        associations: CarriedStudies,
        refusals: Refusals,
        under_way: UnderWay,
        clock: Clock,
        watermark: Watermark,
        free_bytes: Callable[[], int | None],
        storage_classes: Collection[str] = (),
    ) -> None:
        """`storage_classes`: SOP Class UIDs of what is kept; without any, everything is."""
        self._store = store
        self._ledger = ledger
        self._associations = associations
        self._refusals = refusals
        self._under_way = under_way
        self._clock = clock
        self._watermark = watermark
        self._free_bytes = free_bytes
        self._storage_classes = frozenset(storage_classes)

    def admit(self, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> Refused | None:
        """Asked before the first byte is written: why the object that a command announces is not taken, if so."""
        if not is_uid(sop_instance_uid):
            return Refused(Reason.INVALID_SOP_INSTANCE_UID)
        if not is_uid(sop_class_uid):
            return Refused(Reason.INVALID_SOP_CLASS_UID)
        if not is_uid(transfer_syntax_uid):
            return Refused(Reason.UNREADABLE, "the transfer syntax is no UID")
        if self._storage_classes and sop_class_uid not in self._storage_classes:
            return Refused(Reason.SOP_CLASS_NOT_KEPT)
        return self.lacks_room()

    def lacks_room(self) -> Refused | None:
        """Why no object is taken now, if so."""
        try:
            free = self._free_bytes()
        except OSError:
            return Refused(Reason.STORE_UNAVAILABLE)
        return None if self._watermark.allows(free) else Refused(Reason.LOW_SPACE)

    def receive(self, staged: StagedFile, peer: Peer, association: Association, of_study: str | None = None) -> int:
        """Keep one received object; returns the DIMSE status. 0000H means durable and indexed.

        `of_study`: the Study Instance UID that the sender promised, where it did (STOW-RS).
        """
        started = self._clock.monotonic()
        sha256: str | None = None
        header: ObjectHeader | None = None
        try:
            sha256 = staged.finish()
            header = staged.header()
            if of_study not in (None, header.study_instance_uid):
                raise Refused(Reason.WRONG_STUDY)
            self._keep(staged, sha256, header, peer, association)
            metrics.STORE_SECONDS.observe(self._clock.monotonic() - started)
            status = SUCCESS
        except Refused as refused:
            status = self._refuse(refused, staged, sha256, header, peer)
        except Exception as error:
            log.warning("object not kept", exc_info=error)
            failed = (
                Refused(Reason.DATABASE_UNAVAILABLE)
                if is_transient(error)
                else Refused(Reason.INTERNAL, type(error).__name__)
            )
            status = self._refuse(failed, staged, sha256, header, peer)
        finally:
            staged.discard()
        metrics.OBJECTS.labels(status=f"{status:04X}").inc()
        return status

    def _keep(
        self, staged: StagedFile, sha256: str, header: ObjectHeader, peer: Peer, association: Association
    ) -> None:
        if header.sop_class_uid != staged.sop_class_uid:
            raise Refused(Reason.UID_MISMATCH, "SOPClassUID")
        if header.sop_instance_uid != staged.sop_instance_uid:
            raise Refused(Reason.UID_MISMATCH, "SOPInstanceUID")
        key = object_key(sha256)
        with self._under_way.keeping(key):
            staged.put(key)
            # Before the row is visible: the completeness loop must not see a study without its open association.
            self._associations.carry(association, header.study_instance_uid)
            recorded = self._ledger.record(
                StoredObject(header, staged.transfer_syntax_uid, key, sha256, staged.size_bytes, peer),
                self._clock.now(),
            )
        metrics.RECORDED.labels(outcome=recorded.value).inc()
        metrics.BYTES.inc(staged.size_bytes)
        log.debug("object kept", extra={"study": study_ref(header.study_instance_uid), "outcome": recorded.value})

    def _refuse(
        self, refused: Refused, staged: StagedFile, sha256: str | None, header: ObjectHeader | None, peer: Peer
    ) -> int:
        quarantine_key = None
        if refused.reason.is_kept and sha256 is not None:
            try:
                quarantine_key = self._quarantine(refused, staged, sha256, peer)
            except (Refused, ObjectStoreUnavailable):
                refused = Refused(Reason.STORE_UNAVAILABLE)
        self._refusals.note(
            Refusal(
                scope="object",
                reason=refused.reason.code,
                status=refused.reason.status,
                text=refused.text(),
                peer=peer,
                accession_number=header.accession_number if header else None,
                sop_class_uid=staged.sop_class_uid if is_uid(staged.sop_class_uid) else None,
                quarantine_key=quarantine_key,
            )
        )
        return refused.reason.status

    def _quarantine(self, refused: Refused, staged: StagedFile, sha256: str, peer: Peer) -> str:
        key = f"quarantine/{sha256}.dcm"
        staged.put(key)
        note = {
            "reason": refused.reason.code,
            "text": refused.text(),
            "status": f"{refused.reason.status:04X}",
            "at": iso(self._clock.now()),
            "calling_ae_title": peer.calling_ae_title,
            "called_ae_title": peer.called_ae_title,
            "address": peer.address,
            "sop_class_uid": staged.sop_class_uid,
            "sop_instance_uid": staged.sop_instance_uid,
            "transfer_syntax_uid": staged.transfer_syntax_uid,
            "size_bytes": staged.size_bytes,
        }
        self._store.put_bytes(json.dumps(note, indent=1).encode(), f"quarantine/{sha256}.json")
        return key
