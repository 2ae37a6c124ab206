"""pynetdicom's DIMSE provider, with data sets of C-STORE requests streamed into staged files.

pynetdicom can stream, too, but an error while it writes (a full disk) or an odd command ends its reactor thread and
leaves the peer hanging. Here every such case becomes a status or an orderly abort.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom import config as pydicom_config
from pynetdicom import _config
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.pdu_primitives import P_DATA

from dicom_listener.adapters.staging import IncomingFile
from dicom_listener.domain.access import TurnedAway
from dicom_listener.domain.wire import COMMAND, LAST, p_data_of_command, store_response

VERIFICATION, STORAGE_COMMITMENT = "1.2.840.10008.1.1", "1.2.840.10008.1.20.1"

log = logging.getLogger(__name__)

Begin = Callable[[str, str, str], IncomingFile]
"""(SOP Class UID, SOP Instance UID, Transfer Syntax UID) -> where the data set goes."""
Finish = Callable[[IncomingFile], int]
"""All of the data set is there -> the status that the sender is told."""


def configure() -> None:
    """Process-wide settings of the two libraries."""
    # Private and unknown SOP classes with whatever transfer syntax: an auto-route rule must never back up.
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    # Its handlers format every message for a log that is switched off.
    _config.LOG_HANDLER_LEVEL = "none"
    # We check UIDs ourselves and answer with a status; the library would abort the association.
    _config.VALIDATORS["UI"] = lambda value: (isinstance(value, str), "must be text")
    # Odd values in a command are answered, not warned about on standard error.
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE


_STORE, _ECHO, _ACTION, _CANCEL, _EVENT_REPORT_RSP = 0x0001, 0x0030, 0x0130, 0x0FFF, 0x8100
_REQUESTS = {VERIFICATION: _ECHO, STORAGE_COMMITMENT: _ACTION}  # in all other contexts: C-STORE
_MAX_COMMAND = 16_384  # bytes; the longest command of the standard has some hundred
_MAX_REQUEST = 4 * 2**20  # bytes of a data set that is no object: 30,000 instances in one commitment request
_MAX_WAITING = 4  # requests; asynchronous operations are not negotiated, so a sender waits for each answer


class _TooLong(Exception):
    pass


@dataclass
class _Progress:
    """How much of the message under way has come."""

    context_id: int | None = None
    has_command: bool = False
    is_checked: bool = False
    command_bytes: int = 0
    request_bytes: int = 0


@dataclass
class _Storing:
    """The C-STORE request whose data set is arriving."""

    context_id: int
    sop_class_uid: str
    sop_instance_uid: str
    message_id: int
    incoming: IncomingFile


class StagingDimse(DIMSEServiceProvider):
    """Replaces an association's provider before its first message."""

    def __init__(
        self,
        assoc: Any,
        connection: socket.socket,
        begin: Begin,
        finish: Finish,
        turn_away: Callable[[TurnedAway], None],
    ) -> None:
        super().__init__(assoc)
        self.connection = connection
        self._begin = begin
        self._finish = finish
        self._turn_away = turn_away
        self._storing: _Storing | None = None
        self._progress = _Progress()
        self._ended = False

    def receive_values(self, values: Sequence[tuple[int, memoryview]]) -> None:
        """The values of one P-DATA-TF one by one, so that a file stands ready before the first data fragment.

        Fragments of an object go straight into its file, and a request to store is answered here and now, in the thread
        that reads: the sender waits for the answer, and so may we.
        """
        try:
            for context_id, value in values:
                self._check(context_id, value)
                if self._storing is not None and not value[0] & COMMAND:
                    self._storing.incoming.gather(value[1:])
                    if value[0] & LAST:
                        self._store()
                    continue
                single = P_DATA()
                single.presentation_data_value_list.append((context_id, value))  # type: ignore[arg-type]  # no copy
                super().receive_primitive(single)
                self._stage()
                if self.message is None:
                    self._progress = _Progress()
        except Exception as error:  # noqa: BLE001  # anything can be in a peer's bytes
            # "Unexpected PDU" makes the state machine abort the association.
            too_long = isinstance(error, _TooLong)
            self._turn_away(TurnedAway.MESSAGE_TOO_LONG if too_long else TurnedAway.MESSAGE_INVALID)
            log.info("a message is at fault", extra={"error": type(error).__name__})
            self.abandon()
            self.dul.event_queue.put("Evt19")

    def flush(self) -> None:
        """The memory of the values received so far is about to be used again."""
        if self._storing is not None:
            self._storing.incoming.flush()

    def _store(self) -> None:
        """The object has come whole."""
        storing, self._storing = self._storing, None
        assert storing is not None
        self.message = None
        self._progress = _Progress()
        status = self._finish(storing.incoming)
        storing.incoming.discard()  # if it is still there
        self._answer(storing, status)

    def _answer(self, storing: _Storing, status: int) -> None:
        """Straight to the socket: the reading thread is the one that writes while data are transferred."""
        response = store_response(storing.sop_class_uid, storing.sop_instance_uid, storing.message_id, status)
        for pdu in p_data_of_command(storing.context_id, response, self.maximum_pdu_size or 0):
            if self.dul.socket is not None:  # the connection may have been closed in the meantime
                self.dul.socket.send(pdu)

    def _check(self, context_id: int, value: memoryview) -> None:
        """Raise for a fragment that must not come now (PS3.8 annex E), or that would fill the memory."""
        progress = self._progress
        if context_id not in self.assoc._accepted_cx:
            raise ValueError("no such presentation context")
        if progress.context_id not in (None, context_id):
            raise ValueError("fragments of two contexts are mixed")
        if progress.context_id is None and self.msg_queue.qsize() >= _MAX_WAITING:
            raise ValueError("requests are sent without waiting for answers")
        progress.context_id = context_id
        if value[0] & COMMAND:
            if progress.has_command:
                raise ValueError("a command inside a data set")
            progress.has_command = bool(value[0] & LAST)
            progress.command_bytes += len(value)
        elif not progress.has_command:
            raise ValueError("a data set without a command")
        elif not isinstance(self.message, C_STORE_RQ):
            progress.request_bytes += len(value)
        if progress.command_bytes > _MAX_COMMAND or progress.request_bytes > _MAX_REQUEST:
            raise _TooLong

    def _check_command(self) -> None:
        """Raise for a request that its context does not have, or that cannot be answered."""
        message: Any = self.message
        field = message.command_set.CommandField
        if field in (_CANCEL, _EVENT_REPORT_RSP):
            return
        abstract_syntax = self.assoc._accepted_cx[int(message.context_id)].abstract_syntax
        if field != _REQUESTS.get(str(abstract_syntax), _STORE):
            raise ValueError("no such request in this context")
        if "MessageID" not in message.command_set:
            raise ValueError("a request without a message ID cannot be answered")

    def _stage(self) -> None:
        if self.message is not None and self._progress.has_command and not self._progress.is_checked:
            self._progress.is_checked = True
            self._check_command()
        if not isinstance(self.message, C_STORE_RQ):
            return
        message: Any = self.message  # the library declares less than it has
        command = message.command_set
        context_id: int = message.context_id
        context = self.assoc._accepted_cx[context_id]
        uids = _text(command.AffectedSOPClassUID), _text(command.AffectedSOPInstanceUID)
        incoming = self._begin(*uids, str(context.transfer_syntax[0]))
        self._storing = _Storing(context_id, *uids, _number(command.MessageID), incoming)
        if self._ended:  # this was read ahead of the end
            self.discard_all()

    def abandon(self) -> None:
        """The message under way will not be finished."""
        self.discard_all()
        self.message = None
        self._progress = _Progress()

    def discard_all(self) -> None:
        """The association has ended: nothing of it that was not acknowledged is kept."""
        self._ended = True
        storing, self._storing = self._storing, None
        if storing is not None:
            storing.incoming.discard()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "\\".join(value)


def _number(value: Any) -> int:
    return int(value if isinstance(value, int) else value[0])
