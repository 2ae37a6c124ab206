"""The N-ACTION side of storage commitment: read a request, write it down, answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from pynetdicom.sop_class import StorageCommitmentPushModelInstance

from dicom_listener.adapters.commitments import DimseReporter
from dicom_listener.domain.commitment import Reference
from dicom_listener.domain.uids import is_uid
from dicom_listener.handlers.commit import CommitmentLoop, Commitments
from dicom_listener.ports import Peer, Refusal, Refusals
from pipeline.clock import Clock
from pipeline.database import is_transient

log = logging.getLogger(__name__)

_MOST = 30_000  # instances in one request
_NO_SUCH_INSTANCE, _MISSING, _INVALID, _NO_SUCH_ACTION = 0x0112, 0x0114, 0x0115, 0x0123
_RESOURCES = 0x0213


class CommitmentRequests(Protocol):
    """Where requests go."""

    def take(
        self, transaction_uid: str, peer: Peer, requested: Sequence[Reference], association: Any, now: datetime
    ) -> object:
        """Write it down and have the result sent, on the association if the sender's address is not known."""
        ...


class CommitmentDesk:
    """Implements `CommitmentRequests` where the database is."""

    def __init__(self, commitments: Commitments, reporter: DimseReporter, loop: CommitmentLoop) -> None:
        self._commitments = commitments
        self._reporter = reporter
        self._loop = loop

    def take(
        self, transaction_uid: str, peer: Peer, requested: Sequence[Reference], association: Any, now: datetime
    ) -> None:
        """Write it down, and wake the loop that sends results."""
        self._reporter.asked_on(self._commitments.add(transaction_uid, peer, requested, now), association)
        self._loop.wakeup.set()


class CommitmentScp:
    """Called from association threads."""

    def __init__(
        self,
        requests: CommitmentRequests,
        refusals: Refusals,
        clock: Clock,
    ) -> None:
        self._requests = requests
        self._refusals = refusals
        self._clock = clock

    def request(self, event: Any, peer: Peer) -> tuple[int, None]:
        """Status of an N-ACTION; 0000H means that the request is written down and a result will follow."""
        try:
            transaction_uid, requested = _read(event)
            self._requests.take(transaction_uid, peer, requested, event.assoc, self._clock.now())
        except _WrongRequestError as wrong:
            return self._refuse(wrong.status, "commitment_invalid", wrong.text, peer)
        except Exception as error:
            if not is_transient(error):
                raise
            return self._refuse(_RESOURCES, "database_unavailable", "the database cannot be written", peer)
        return 0x0000, None

    def _refuse(self, status: int, code: str, text: str, peer: Peer) -> tuple[int, None]:
        self._refusals.note(Refusal("request", code, text, peer, status=status))
        return status, None


class _WrongRequestError(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def _read(event: Any) -> tuple[str, list[Reference]]:
    if event.action_type != 1:
        raise _WrongRequestError(_NO_SUCH_ACTION, "no such action type")
    if event.request.RequestedSOPInstanceUID != StorageCommitmentPushModelInstance:
        raise _WrongRequestError(_NO_SUCH_INSTANCE, "not the instance of the push model")
    try:
        information = event.action_information
        transaction_uid = str(information.get("TransactionUID") or "")
        requested = [
            Reference(str(item.get("ReferencedSOPClassUID") or ""), str(item.get("ReferencedSOPInstanceUID") or ""))
            for item in information.get("ReferencedSOPSequence") or []
        ]
    except Exception as error:  # the library decodes a peer's bytes, and whatever is wrong with them surfaces here
        log.info("commitment request cannot be decoded", extra={"error": type(error).__name__})
        raise _WrongRequestError(_INVALID, "the action information cannot be decoded") from error
    if not transaction_uid or not requested:
        raise _WrongRequestError(_MISSING, "transaction UID or references are missing")
    if not is_uid(transaction_uid) or len(requested) > _MOST:
        raise _WrongRequestError(_INVALID, "the transaction UID is no UID, or there are too many references")
    if not all(is_uid(each.sop_class_uid) and is_uid(each.sop_instance_uid) for each in requested):
        raise _WrongRequestError(_INVALID, "a reference is no UID")
    return transaction_uid, requested
