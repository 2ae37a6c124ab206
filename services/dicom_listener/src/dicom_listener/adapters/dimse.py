"""pynetdicom's DIMSE provider, with data sets of C-STORE requests streamed into staged files.

pynetdicom can stream, too, but an error while it writes (a full disk) or an odd command ends its reactor thread and
leaves the peer hanging. Here every such case becomes a status or an orderly abort.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydicom import config as pydicom_config
from pynetdicom import _config
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.pdu_primitives import P_DATA

from dicom_listener.adapters.staging import IncomingFile

log = logging.getLogger(__name__)

Begin = Callable[[str, str, str], IncomingFile]
"""(SOP Class UID, SOP Instance UID, Transfer Syntax UID) -> where the data set goes."""


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


class StagingDimse(DIMSEServiceProvider):
    """Replaces an association's provider before its first message."""

    def __init__(self, assoc: Any, connection: socket.socket, begin: Begin) -> None:
        super().__init__(assoc)
        self.connection = connection
        self._begin = begin
        self._incoming: list[IncomingFile] = []

    def receive_primitive(self, primitive: P_DATA) -> None:
        """One P-DATA; its values are handled one by one, so that a file stands ready before the first data fragment."""
        try:
            for value in primitive.presentation_data_value_list:
                single = P_DATA()
                single.presentation_data_value_list.append(value)
                super().receive_primitive(single)
                self._stage()
        except Exception as error:
            # Anything can be in a peer's bytes. "Unexpected PDU" makes the state machine abort the association.
            log.warning("peer sent a message that cannot be decoded", exc_info=error)
            self.abandon()
            self.dul.event_queue.put("Evt19")

    def _stage(self) -> None:
        if not isinstance(self.message, C_STORE_RQ) or self.message._data_set_file is not None:
            return
        message: Any = self.message  # the library declares its own temporary file where ours goes
        command = message.command_set
        context = self.assoc._accepted_cx[int(message.context_id)]
        incoming = self._begin(
            str(command.AffectedSOPClassUID), str(command.AffectedSOPInstanceUID), str(context.transfer_syntax[0])
        )
        self._incoming = [each for each in self._incoming if Path(each.name).exists()]
        self._incoming.append(incoming)
        message._data_set_file = incoming
        message._data_set_path = Path(incoming.name)

    def abandon(self) -> None:
        """The message under way will not be finished."""
        message: Any = self.message
        if message is not None and message._data_set_file is not None:
            message._data_set_file.discard()

    def discard_all(self) -> None:
        """The association has ended: nothing of it that was not acknowledged is kept."""
        for incoming in self._incoming:
            incoming.discard()
