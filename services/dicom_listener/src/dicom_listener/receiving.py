"""The composition root of a receiving process. It has no database: what it needs of one, it asks the listener for."""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Never, cast

from dicom_listener import metrics
from dicom_listener.adapters.channel import Channel
from dicom_listener.adapters.commitment_scp import CommitmentScp
from dicom_listener.adapters.commitments import DimseReporter
from dicom_listener.adapters.scp import StorageScp
from dicom_listener.assembly import free_bytes, scp_options, server_tls
from dicom_listener.domain.access import TurnedAway
from dicom_listener.domain.commitment import Reference, Verdict
from dicom_listener.domain.watermark import Watermark
from dicom_listener.handlers.commit import Commitment
from dicom_listener.handlers.receive import Receiver
from dicom_listener.handlers.sweep import UnderWay
from dicom_listener.ports import Peer, Recorded, Refusal, StoredObject
from dicom_listener.settings import Settings
from pipeline.clock import SystemClock
from pipeline.store import make_object_store
from pipeline.telemetry import configure_logging

log = logging.getLogger(__name__)

_LOOK_S = 0.1


class _Listener:
    """The listener's books, over the channel. Stands for `Index`, `CarriedStudies`, `Limits`, `Refusals`, and more."""

    def __init__(self) -> None:
        self._asked_on: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        self._reporter = DimseReporter({}, None, 0)
        self._channel: Channel

    def use(self, channel: Channel) -> None:
        """Before anything else."""
        self._channel = channel

    def record(self, stored: StoredObject, now: datetime) -> Recorded:
        return cast(Recorded, self._channel.ask("record", stored, now))

    def carry(self, association: Any, study_instance_uid: str) -> None:
        carried: set[str] = association.__dict__.setdefault("carried", set())
        if study_instance_uid not in carried:
            carried.add(study_instance_uid)
            self._channel.tell("carry", association.number, study_instance_uid)

    def end(self, association: Any, released_at: datetime | None) -> None:
        self._channel.tell("end", association.number, released_at, soon=True)

    def admit(self, association: Any, address: str) -> TurnedAway | None:
        return cast(TurnedAway | None, self._channel.ask("admit", association.number, address))

    def leave(self, association: Any) -> None:
        """That its connection is closed says so."""

    def closed(self, number: int) -> None:
        self._channel.tell("closed", number, soon=True)

    def gone(self, number: int) -> None:
        self._channel.tell("gone", number, soon=True)

    def note(self, refusal: Refusal) -> None:
        self._channel.tell("refused", refusal, soon=True)

    def take(
        self, transaction_uid: str, peer: Peer, requested: Sequence[Reference], association: Any, now: datetime
    ) -> None:
        self._asked_on[transaction_uid] = association
        self._channel.ask("commitment", transaction_uid, peer, requested, association.number, now)

    def report(self, commitment: Commitment, verdict: Verdict) -> bool:
        return self._reporter.report_on(self._asked_on.get(commitment.transaction_uid), commitment, verdict)


def receive(
    settings: Settings,
    under_way: UnderWay,
    watermark: Watermark,
    connection: Connection[Any, Any],
    handover: socket.socket,
) -> int:
    """Serve connections that the listener hands over until it says to drain; returns the exit status.

    When the listener dies, nothing more can be acknowledged, and this process dies at once.
    """
    configure_logging("dicom-listener", settings.log_level, log_identifiers=settings.log_identifiers)
    drain = threading.Event()
    grace: list[float] = []
    slow = ThreadPoolExecutor(4, thread_name_prefix="report")
    listener = _Listener()

    def start_draining(grace_seconds: float) -> None:
        grace.append(grace_seconds)
        drain.set()

    channel = Channel(
        connection,
        {
            "drain": start_draining,
            "check": lambda: None,
            "report": lambda commitment, verdict: slow.submit(listener.report, commitment, verdict),
        },
    )
    listener.use(channel)
    tally = metrics.Tally()
    tally.use()
    store, clock = make_object_store(settings), SystemClock()
    receiver = Receiver(
        store,
        listener,
        listener,
        listener,
        under_way,
        clock,
        watermark,
        lambda: free_bytes(store),
        settings.storage_classes,
    )
    commitment = CommitmentScp(listener, listener, clock)
    scp = StorageScp(
        scp_options(settings, server_tls(settings)),
        receiver,
        listener,
        listener,
        listener,
        store,
        clock,
        commitment,
        handed=listener,
    )
    threading.Thread(target=_die_with, args=(channel.run,), name="listener", daemon=True).start()
    taking = partial(_take, handover, scp.take, listener)
    threading.Thread(target=_die_with, args=(taking,), name="handover", daemon=True).start()
    gc.collect()
    gc.freeze()  # what stands now stays: no need to look through it again and again
    while not drain.wait(_LOOK_S):
        scp.forget_dead()
        if counted := tally.take():
            channel.tell("counted", counted, soon=True)
    scp.drain(grace[0])
    channel.tell("counted", tally.take())
    channel.ask("drained")  # new associations are rejected here until all processes are
    return 0


def _die_with(run: Callable[[], None]) -> Never:
    """End the process when `run` does: without that thread it would seem alive, and serve nobody."""
    try:
        run()
    except Exception:
        log.exception("a thread died")
    finally:
        os._exit(1)


def _take(handover: socket.socket, take: Callable[[int, socket.socket, Any], None], listener: _Listener) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(handover, 256, 1)
        if not message:
            return  # the listener is gone
        number, host, port = message.decode().split()
        connections = [socket.socket(fileno=each) for each in descriptors]
        try:
            take(int(number), connections[0], (host, int(port)))
        except (IndexError, RuntimeError) as error:  # no descriptor is left for it, or no thread
            log.warning("a connection could not be served", extra={"error": type(error).__name__})
            for connection in connections:
                connection.close()
            listener.note(Refusal.of_stranger(TurnedAway.TOO_MANY_CONNECTIONS, host))
            listener.closed(int(number))
            listener.gone(int(number))
