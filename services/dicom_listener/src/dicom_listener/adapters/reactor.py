"""pynetdicom's two threads an association, woken by what happens.

In the library each of them looks for work a thousand times a second, and holds up the others while it looks. Here the
reading thread waits for the peer, and hands data on without an object of the library for each PDU; the association's
thread waits for what the reading thread has for it.
"""

from __future__ import annotations

import queue
import select
import ssl
import threading
from typing import Any

from pynetdicom.dul import DULServiceProvider

from dicom_listener.adapters.dimse import StagingDimse
from dicom_listener.adapters.transport import PduReader
from dicom_listener.domain.wire import presentation_data_values

_AWAITS_REQUEST, _TRANSFERS_DATA = "Sta2", "Sta6"  # PS3.8 section 9.2.1
_OTHER_WORK_S = 0.05  # how long what another thread wants to send may wait for a silent peer: aborts, event reports
_TIMERS_S = 0.25  # how exactly the end of a thread or of a time limit is noticed


def wake_by_events(assoc: Any, dimse: StagingDimse, pdus: PduReader) -> None:
    """Call when the connection is open and before the threads of the association start."""
    bell = threading.Event()
    dimse.msg_queue = _RungQueue(bell)
    assoc.dul.to_user_queue = _RungQueue(bell)
    assoc._reactor_checkpoint = _Checkpoint(bell, (dimse.msg_queue, assoc.dul.to_user_queue))
    assoc.dul._is_transport_event = _Reader(assoc.dul, dimse, pdus).wait


class _RungQueue(queue.Queue[Any]):
    def __init__(self, bell: threading.Event) -> None:
        super().__init__()
        self._bell = bell

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._bell.set()


class _Checkpoint:
    """Stands for the event that holds the association's thread while another one uses the association."""

    def __init__(self, bell: threading.Event, queues: tuple[_RungQueue, ...]) -> None:
        self._bell = bell
        self._queues = queues
        self._open = threading.Event()
        self._open.set()

    def set(self) -> None:
        self._open.set()
        self._bell.set()  # whoever sets it may want the thread to end

    def clear(self) -> None:
        self._open.clear()

    def wait(self) -> None:
        """Until there is something to do and nobody holds the thread."""
        self._open.wait()
        if all(each.empty() for each in self._queues):
            self._bell.wait(_TIMERS_S)
        self._bell.clear()
        self._open.wait()


class _Reader:
    """Takes the place of `DULServiceProvider._is_transport_event`, which looks whether there is a PDU and reads it."""

    def __init__(self, dul: Any, dimse: StagingDimse, pdus: PduReader) -> None:
        self._dul = dul
        self._dimse = dimse
        self._pdus = pdus
        self._poll = select.poll()  # unlike select(), for any number of descriptors
        self._poll.register(dul.socket.socket, select.POLLIN)

    def wait(self) -> bool:
        """Wait for the peer; true once there is an event for the state machine."""
        dul = self._dul
        if not dul.event_queue.empty():
            return False  # what was read tells what to do next: behind an invalid PDU nothing more may ever come
        while dul.state_machine.current_state in (_AWAITS_REQUEST, _TRANSFERS_DATA) and not dul._kill_thread:
            connection = dul.socket.socket
            if connection is None:
                break
            if dul._process_recv_primitive():
                return True
            if not self._pdus.holds_bytes:
                if not self._readable(connection):
                    return False
                dul._idle_timer.restart()
            if dul.state_machine.current_state == _TRANSFERS_DATA:
                self._transfer()
            else:
                dul._read_pdu_data()
            if not dul.event_queue.empty():
                return True
        if self._pdus.holds_bytes:  # the library would wait for more
            dul._read_pdu_data()
            return True
        return bool(DULServiceProvider._is_transport_event(dul))

    def _readable(self, connection: Any) -> bool:
        if isinstance(connection, ssl.SSLSocket) and connection.pending():
            return True
        return bool(self._poll.poll(_OTHER_WORK_S * 1000))

    def _transfer(self) -> None:
        """What has come: data go straight on, everything else the library's way."""
        dul = self._dul
        try:
            if not self._pdus.read_ahead():
                dul._read_pdu_data()  # the connection is closed, maybe inside a PDU
                return
            while dul.event_queue.empty():
                body = self._pdus.next_data()
                if body is None:
                    break
                self._dimse.receive_values(presentation_data_values(body))
            self._dimse.flush()
        except OSError:
            dul.event_queue.put("Evt17")  # the connection is closed
            return
        except ValueError:
            dul.event_queue.put("Evt19")  # an invalid PDU
            return
        if self._pdus.has_other and dul.event_queue.empty():
            dul._read_pdu_data()
