"""The DICOM side: a pynetdicom Storage and Verification SCP that asks the receiver what to answer."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pynetdicom import AE, evt
from pynetdicom.pdu_primitives import A_P_ABORT

from dicom_listener import metrics
from dicom_listener.adapters.commitment_scp import CommitmentScp
from dicom_listener.adapters.dimse import STORAGE_COMMITMENT, VERIFICATION, StagingDimse, configure
from dicom_listener.adapters.reactor import wake_by_events
from dicom_listener.adapters.staging import IncomingFile
from dicom_listener.adapters.transport import HandedServer, PduReader, Server, shut
from dicom_listener.domain.access import AccessRule, TurnedAway, check_access
from dicom_listener.domain.refusals import SUCCESS, Reason
from dicom_listener.handlers.receive import Receiver
from dicom_listener.ports import CarriedStudies, Limits, Peer, Refusal, Refusals
from pipeline.clock import Clock
from pipeline.store import ObjectStore

log = logging.getLogger(__name__)

SERVICES = (VERIFICATION, STORAGE_COMMITMENT)
"""SOP classes beside storage, in Implicit and Explicit VR Little Endian, Explicit VR Big Endian and deflated."""
_DICOM_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
_ABORT_SECONDS = 0.5
_SHORTEST_PDU = 128
_ABORT = bytes([7, 0, 0, 0, 0, 4, 0, 0, 2, 0])  # A-ABORT of the service provider, no reason given
WAITING_ROOM = 32  # connections beyond the associations: those that are to hear that there are too many, and probes


@dataclass(frozen=True)
class ScpOptions:
    """Limits and names of the DICOM port."""

    host: str
    port: int
    ae_title: str
    require_called_aet: bool
    maximum_associations: int
    maximum_pdu_bytes: int
    maximum_object_bytes: int
    network_timeout_seconds: float
    request_timeout_seconds: float
    access: Sequence[AccessRule] = ()
    tls: ssl.SSLContext | None = None

    def rules(self) -> Sequence[AccessRule]:
        """The allow-list; with `require_called_aet` its entries for any called AE title are for our own."""
        if not self.require_called_aet:
            return self.access
        own = self.ae_title.strip()
        return [replace(rule, called=own) if rule.called == "*" else rule for rule in self.access or [AccessRule()]]


class HandedConnections(Protocol):
    """Told of connections that were accepted by another process, by their numbers there."""

    def closed(self, number: int) -> None:
        """The connection is closed."""
        ...

    def gone(self, number: int) -> None:
        """And its association has said all it had to say."""
        ...


class StorageScp:
    """One listening port. pynetdicom runs two threads per association; the receiver is called from one of them."""

    def __init__(
        self,
        options: ScpOptions,
        receiver: Receiver,
        associations: CarriedStudies,
        limits: Limits,
        refusals: Refusals,
        store: ObjectStore,
        clock: Clock,
        commitment: CommitmentScp,
        *,
        handed: HandedConnections | None = None,
    ) -> None:
        """Bind the port; raises `OSError` if that cannot be done.

        With `handed` there is no port: `take` gets the connections, and `handed` is told when they end.
        """
        configure()
        self._options = options
        self._receiver = receiver
        self._associations = associations
        self._limits = limits
        self._refusals = refusals
        self._store = store
        self._clock = clock
        self._commitment = commitment
        self._draining = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[Any, float] = {}  # opened at
        self._ae = AE(ae_title=options.ae_title)
        self._ae.maximum_associations = 1_000_000  # counted here instead, with a reason for each
        self._ae.maximum_pdu_size = options.maximum_pdu_bytes
        self._ae.network_timeout = options.network_timeout_seconds
        self._ae.acse_timeout = options.request_timeout_seconds
        for sop_class in SERVICES:
            self._ae.add_supported_context(sop_class)
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
                (evt.EVT_FSM_TRANSITION, self._on_transition),
                (evt.EVT_C_ECHO, self._on_echo),
                (evt.EVT_C_STORE, self._on_store),
                (evt.EVT_N_ACTION, lambda event: commitment.request(event, _peer(event.assoc))),
            ],
            server_class=Server if handed is None else HandedServer,
        )
        assert isinstance(self._server, Server)
        self._server.configure(options.tls, options.request_timeout_seconds, self._room, self._close_stranger)
        self._ae._servers.append(self._server)  # where the server's own shutdown() looks for itself
        self._handed = handed
        self._ending: list[Any] = []  # associations without a connection, whose threads have not ended
        if isinstance(self._server, HandedServer):
            self._server.gone = self._gone
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="dicom", daemon=True
        )

    def start(self) -> None:
        """Accept associations from now on."""
        self._thread.start()

    def take(self, number: int, connection: socket.socket, address: Any) -> None:
        """Serve a connection that was accepted elsewhere."""
        assert isinstance(self._server, HandedServer)
        self._server.take(number, connection, address)

    def forget_dead(self) -> None:
        """Count out associations whose threads have ended, whether they said so or not."""
        with self._lock:
            dead = _forget_dead(self._connections) + [assoc for assoc in self._ending if not assoc.is_alive()]
            self._ending = [assoc for assoc in self._ending if assoc.is_alive()]
        if self._handed is not None:
            for assoc in dead:
                self._gone(assoc.number)

    def _gone(self, number: int) -> None:
        assert self._handed is not None
        self._handed.closed(number)
        self._handed.gone(number)

    def check(self) -> None:
        """Raise unless the port accepts associations."""
        if self._draining.is_set() or not (self._thread.is_alive() or isinstance(self._server, HandedServer)):
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
                shut(assoc)  # its reader waits for the rest of a PDU
        self._server.shutdown()

    def _established(self) -> list[Any]:
        return [assoc for assoc in self._server.active_associations if assoc.is_established]

    def _room(self) -> int:
        self.forget_dead()
        with self._lock:
            return self._options.maximum_associations + WAITING_ROOM - len(self._connections)

    def _on_connection(self, event: Any) -> None:
        assoc, options = event.assoc, self._options
        if isinstance(self._server, HandedServer):
            self._server.claim(assoc)
        with self._lock:
            self._connections[assoc] = time.monotonic()
        # Neither thread may keep the process alive after the grace time.
        assoc.daemon = True
        assoc.dul.daemon = True
        # Accepted sockets have no time-out of their own: half a PDU would block its reader for ever.
        connection = assoc.dul.socket.socket
        connection.settimeout(options.network_timeout_seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pdus = PduReader(
            assoc.dul.socket,
            options.maximum_pdu_bytes,
            lambda: options.network_timeout_seconds if assoc.is_established else options.request_timeout_seconds,
            lambda reason: self._turn_away(
                assoc, TurnedAway.IDLE if reason is TurnedAway.STALLED and assoc.is_established else reason
            ),
        )
        assoc.dul.socket.recv = pdus.recv
        machine = assoc.dul.state_machine
        machine.do_action = self._guarded(assoc, machine.do_action)
        assoc.acse.negotiate_association = self._guarded(assoc, assoc.acse.negotiate_association)
        assoc.dimse = StagingDimse(
            assoc,
            connection,
            self._begin,
            lambda incoming: self._finish(assoc, incoming),
            lambda reason: self._turn_away(assoc, reason),
        )
        wake_by_events(assoc, assoc.dimse, pdus)

    def _begin(self, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> IncomingFile:
        refused = self._receiver.admit(sop_class_uid, sop_instance_uid, transfer_syntax_uid)
        return IncomingFile(
            self._store,
            sop_class_uid,
            sop_instance_uid,
            transfer_syntax_uid,
            refused,
            maximum_bytes=self._options.maximum_object_bytes,
        )

    def _guarded(self, assoc: Any, step: Callable[..., None]) -> Callable[..., None]:
        """A step of the library that a peer's odd values can make fail: then the connection ends, and only that."""

        def guarded(*arguments: Any) -> None:
            try:
                step(*arguments)
            except Exception as error:  # noqa: BLE001  # whatever the library did not expect of a peer
                log.info("a PDU is at fault", extra={"error": type(error).__name__})
                self._turn_away(assoc, TurnedAway.PDU_INVALID)
                assoc.is_aborted, assoc.is_established = True, False
                assoc._kill = True
                assoc.dul.kill_dul()
                if assoc.dul.socket.socket is not None:
                    assoc.dul.socket.send(_ABORT)
                assoc.dul.to_user_queue.put(A_P_ABORT())  # wakes the association's thread
                assoc.dimse.discard_all()
                shut(assoc)

        return guarded

    def _on_connection_closed(self, event: Any) -> None:
        assoc = event.assoc
        with self._lock:
            opened_at = self._connections.pop(assoc, None)
        self._limits.leave(assoc)
        assoc.dimse.discard_all()
        assoc.dimse.connection.close()  # the library leaves it open when the peer was the first to go
        if opened_at is not None and self._handed is not None:
            self._handed.closed(assoc.number)
            with self._lock:
                self._ending.append(assoc)  # it may still say that it was released
        waited = 0.0 if opened_at is None else time.monotonic() - opened_at
        if assoc.requestor.primitive is None and waited >= self._options.request_timeout_seconds:
            self._turn_away(assoc, TurnedAway.NO_REQUEST)

    def _on_requested(self, event: Any) -> None:
        if event.assoc.is_aborted:
            return
        reason = self._admit(event.assoc)
        if reason is not None and reason.rejection is not None:
            metrics.ASSOCIATIONS.labels(outcome="rejected").inc()
            self._turn_away(event.assoc, reason)  # before the sender hears it, so that it can be found from then on
            event.assoc.acse.send_reject(*reason.rejection)
            event.assoc.kill()

    def _admit(self, assoc: Any) -> TurnedAway | None:
        if self._draining.is_set():
            return TurnedAway.DRAINING
        request = assoc.requestor.primitive
        if request.application_context_name != _DICOM_APPLICATION_CONTEXT:
            return TurnedAway.APPLICATION_CONTEXT
        if 0 < assoc.requestor.maximum_length < _SHORTEST_PDU:
            return TurnedAway.MAXIMUM_LENGTH
        peer, options = _peer(assoc), self._options
        reason = check_access(options.rules(), peer.called_ae_title, peer.calling_ae_title, peer.address)
        return reason or self._limits.admit(assoc, peer.address)

    def _turn_away(self, assoc: Any, reason: TurnedAway) -> None:
        """Tell people, once per association; the first reason is the cause of what follows."""
        if getattr(assoc, "turned_away", None) is not None:
            return
        assoc.turned_away = reason
        scope = "association" if assoc.requestor.primitive is not None else "connection"
        self._refusals.note(
            Refusal(scope, reason.code, reason.text, _peer(assoc), rejection=reason.rejection)  # type: ignore[arg-type]  # one of two literals
        )

    def _close_stranger(self, reason: TurnedAway, address: str, detail: str) -> None:
        self._refusals.note(Refusal.of_stranger(reason, address, detail))

    def _on_transition(self, event: Any) -> None:
        # AA-1 and AA-8 answer what is invalid or out of turn with an A-ABORT (PS3.8 table 9-10).
        if event.action == "AE-6" and event.next_state == "Sta13":
            self._turn_away(event.assoc, TurnedAway.PROTOCOL_VERSION)
        if event.action in ("AA-1", "AA-8") and event.fsm_event not in ("Evt15", "Evt17"):
            self._turn_away(event.assoc, TurnedAway.PDU_INVALID)

    def _on_accepted(self, _event: Any) -> None:
        metrics.ASSOCIATIONS.labels(outcome="accepted").inc()

    def _on_rejected(self, event: Any) -> None:
        metrics.ASSOCIATIONS.labels(outcome="rejected").inc()
        self._turn_away(event.assoc, TurnedAway.REJECTED)

    def _on_released(self, event: Any) -> None:
        metrics.ASSOCIATIONS.labels(outcome="released").inc()
        self._associations.end(event.assoc, self._clock.now())
        event.assoc.dimse.discard_all()

    def _on_aborted(self, event: Any) -> None:
        assoc = event.assoc
        metrics.ASSOCIATIONS.labels(outcome="aborted").inc()
        self._associations.end(assoc, None)
        assoc.dimse.discard_all()
        if assoc.dul.idle_timer_expired():
            self._turn_away(assoc, TurnedAway.IDLE)

    def _on_echo(self, _event: Any) -> int:
        return SUCCESS

    def _on_store(self, event: Any) -> int:
        """A request to store whose command says that there is no data set; others end in `_finish`."""
        reason = Reason.UNREADABLE
        self._refusals.note(
            Refusal("object", reason.code, "there is no data set", _peer(event.assoc), status=reason.status)
        )
        return reason.status

    def _finish(self, assoc: Any, incoming: IncomingFile) -> int:
        assoc.dul._idle_timer.stop()  # the sender waits for us, and is not silent
        try:
            return self._receiver.receive(incoming, _peer(assoc), assoc)
        finally:
            assoc.dul._idle_timer.restart()


def _forget_dead(of_associations: dict[Any, Any]) -> list[Any]:
    dead = [assoc for assoc in of_associations if assoc.ident is not None and not assoc.is_alive()]
    for assoc in dead:
        del of_associations[assoc]
    return dead


def _peer(assoc: Any) -> Peer:
    request = assoc.requestor.primitive
    return Peer(
        calling_ae_title=str(getattr(request, "calling_ae_title", "") or "").strip()[:16],
        called_ae_title=str(getattr(request, "called_ae_title", "") or "").strip()[:16],
        address=str(assoc.requestor.address or ""),
    )
