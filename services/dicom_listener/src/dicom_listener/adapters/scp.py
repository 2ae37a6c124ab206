"""The DICOM side: a pynetdicom Storage and Verification SCP that asks the receiver what to answer."""

from __future__ import annotations

import logging
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.transport import ThreadedAssociationServer

from dicom_listener import metrics
from dicom_listener.adapters.dimse import StagingDimse, configure
from dicom_listener.adapters.staging import IncomingFile
from dicom_listener.domain.refusals import SUCCESS, Reason
from dicom_listener.handlers.associations import Associations
from dicom_listener.handlers.receive import Receiver
from dicom_listener.ports import Peer
from pipeline.clock import Clock
from pipeline.store import ObjectStore

log = logging.getLogger(__name__)

_VERIFICATION = "1.2.840.10008.1.1"
_ABORT_SECONDS = 0.5
_TRANSIENT, _PRESENTATION, _CONGESTION = 0x02, 0x03, 0x01  # PS3.8 table 9-21: rejected for now


class _Server(ThreadedAssociationServer):
    request_queue_size = 128
    daemon_threads = True


@dataclass(frozen=True)
class ScpOptions:
    """Limits and names of the DICOM port."""

    host: str
    port: int
    ae_title: str
    require_called_aet: bool
    maximum_associations: int
    maximum_pdu_bytes: int
    network_timeout_seconds: float


class StorageScp:
    """One listening port. pynetdicom runs two threads per association; the receiver is called from one of them."""

    def __init__(
        self, options: ScpOptions, receiver: Receiver, associations: Associations, store: ObjectStore, clock: Clock
    ) -> None:
        """Bind the port; raises `OSError` if that cannot be done."""
        configure()
        self._options = options
        self._receiver = receiver
        self._associations = associations
        self._store = store
        self._clock = clock
        self._draining = threading.Event()
        self._ae = AE(ae_title=options.ae_title)
        self._ae.maximum_associations = options.maximum_associations
        self._ae.maximum_pdu_size = options.maximum_pdu_bytes
        self._ae.network_timeout = options.network_timeout_seconds
        self._ae.require_called_aet = options.require_called_aet
        self._ae.add_supported_context(_VERIFICATION)
        self._server = self._ae.make_server(
            (options.host, options.port),
            evt_handlers=[
                (evt.EVT_CONN_OPEN, self._on_connection),
                (evt.EVT_CONN_CLOSE, self._on_connection_closed),
                (evt.EVT_REQUESTED, self._on_requested),
                (evt.EVT_ACCEPTED, self._on_accepted),
                (evt.EVT_REJECTED, self._on_rejected),
                (evt.EVT_RELEASED, self._on_released),
                (evt.EVT_ABORTED, self._on_aborted),
                (evt.EVT_C_ECHO, self._on_echo),
                (evt.EVT_C_STORE, self._on_store),
            ],
            server_class=_Server,
        )
        self._ae._servers.append(self._server)  # where the server's own shutdown() looks for itself
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="dicom", daemon=True
        )

    def start(self) -> None:
        """Accept associations from now on."""
        self._thread.start()

    def check(self) -> None:
        """Raise unless the port accepts associations."""
        if self._draining.is_set() or not self._thread.is_alive():
            raise RuntimeError("the DICOM port does not accept associations")

    def drain(self, grace_seconds: float) -> None:
        """Reject new associations as transient, give running ones `grace_seconds`, then close the port."""
        if self._draining.is_set():
            return
        self._draining.set()
        deadline = time.monotonic() + grace_seconds
        while self._established() and time.monotonic() < deadline:
            time.sleep(0.02)
        late = self._established()
        for assoc in late:
            log.warning("association aborted while stopping", extra={"calling_ae_title": _peer(assoc).calling_ae_title})
            assoc.abort(block=False)
        deadline = time.monotonic() + _ABORT_SECONDS
        while any(assoc.is_alive() for assoc in late) and time.monotonic() < deadline:
            time.sleep(0.02)
        for assoc in late:
            if assoc.is_alive():
                _shut(assoc)  # its reader waits for the rest of a PDU
        self._server.shutdown()

    def _established(self) -> list[Any]:
        return [assoc for assoc in self._server.active_associations if assoc.is_established]

    def _on_connection(self, event: Any) -> None:
        assoc = event.assoc
        # Neither thread may keep the process alive after the grace time.
        assoc.daemon = True
        assoc.dul.daemon = True
        # Accepted sockets have no time-out of their own: half a PDU would block its reader for ever.
        connection = assoc.dul.socket.socket
        connection.settimeout(self._options.network_timeout_seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assoc.dimse = StagingDimse(assoc, connection, self._begin)

    def _begin(self, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> IncomingFile:
        refused = self._receiver.admit(sop_class_uid, sop_instance_uid, transfer_syntax_uid)
        return IncomingFile(self._store, sop_class_uid, sop_instance_uid, transfer_syntax_uid, refused)

    def _on_connection_closed(self, event: Any) -> None:
        event.assoc.dimse.abandon()
        event.assoc.dimse.connection.close()  # the library leaves it open when the peer was the first to go

    def _on_requested(self, event: Any) -> None:
        if self._draining.is_set():
            assoc = event.assoc
            assoc.acse.send_reject(_TRANSIENT, _PRESENTATION, _CONGESTION)
            metrics.ASSOCIATIONS.labels(outcome="rejected").inc()
            assoc.kill()

    def _on_accepted(self, _event: Any) -> None:
        metrics.ASSOCIATIONS.labels(outcome="accepted").inc()

    def _on_rejected(self, event: Any) -> None:
        metrics.ASSOCIATIONS.labels(outcome="rejected").inc()
        peer = _peer(event.assoc)
        log.warning("association rejected", extra={"calling_ae_title": peer.calling_ae_title, "address": peer.address})

    def _on_released(self, event: Any) -> None:
        metrics.ASSOCIATIONS.labels(outcome="released").inc()
        self._associations.end(event.assoc, self._clock.now())
        event.assoc.dimse.discard_all()

    def _on_aborted(self, event: Any) -> None:
        metrics.ASSOCIATIONS.labels(outcome="aborted").inc()
        self._associations.end(event.assoc, None)
        event.assoc.dimse.discard_all()

    def _on_echo(self, _event: Any) -> int:
        return SUCCESS

    def _on_store(self, event: Any) -> int:
        incoming = event.request._dataset_file
        if incoming is None:
            return Reason.UNREADABLE.status
        return self._receiver.receive(incoming, _peer(event.assoc), event.assoc)


def _peer(assoc: Any) -> Peer:
    request = assoc.requestor.primitive
    return Peer(
        calling_ae_title=str(getattr(request, "calling_ae_title", "") or "").strip()[:16],
        called_ae_title=str(getattr(request, "called_ae_title", "") or "").strip()[:16],
        address=str(assoc.requestor.address),
    )


def _shut(assoc: Any) -> None:
    """End the connection under an association whose reader may be blocked."""
    sock = assoc.dul.socket.socket
    if sock is not None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            log.debug("connection was closed already", extra={"error": error.errno})
