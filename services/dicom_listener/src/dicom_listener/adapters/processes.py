"""Receiving in several processes: one accepts connections and keeps the books, the others receive objects.

Each receiving process is forked before the listener has a thread, and serves the connections that are handed to it.
What must be one stays here: the database, limits, the studies that open associations carry, refusals, metrics. The
processes tell and ask over a `Channel`. One that dies ends the listener: whoever watches it starts all of it again. One
that hangs is killed after half a minute, to the same end.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from dicom_listener import metrics
from dicom_listener.adapters.channel import Channel
from dicom_listener.adapters.commitment_scp import CommitmentRequests
from dicom_listener.adapters.commitments import Elsewhere
from dicom_listener.adapters.scp import WAITING_ROOM
from dicom_listener.domain.access import TurnedAway
from dicom_listener.domain.commitment import Reference, Verdict
from dicom_listener.handlers.commit import Commitment
from dicom_listener.ports import CarriedStudies, Limits, Peer, Recorded, Refusal, Refusals, StoredObject
from pipeline.errors import TransientError
from pipeline.http import bind

log = logging.getLogger(__name__)

_LAST_WORDS_S = 5.0  # beyond the grace time, for a process to end by itself
_ANSWER_S = 3.0  # when all that is asked is whether it lives
_MOST_SILENCE = 10  # times in a row: counted, not timed, so that a listener that was stopped itself blames nobody
_REPORT_S = 120.0  # pynetdicom's own time limits are shorter

Record = Callable[[Sequence[tuple[StoredObject, datetime]]], Sequence[Recorded | Exception]]
"""Index objects, in as few transactions as can be; an outcome for each."""


@dataclass(frozen=True)
class Fork:
    """A receiving process, from the side of the listener."""

    process: BaseProcess
    connection: Connection[Any, Any]
    handover: socket.socket


def fork(count: int, receive: Callable[[Connection[Any, Any], socket.socket], int]) -> list[Fork]:
    """Start processes that run `receive` and end with its status. Call while this process has one thread only."""
    context = get_context("fork")
    gc.collect()
    gc.freeze()  # looking for garbage writes to objects, and would copy what the processes share
    forks: list[Fork] = []
    for number in range(count):
        ours, theirs = context.Pipe()
        handover, taking = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        handover.setblocking(False)
        # A process that held the listener's end of a channel would not notice the listener's death.
        inherited = [ours, handover, *(end for each in forks for end in (each.connection, each.handover))]
        process = context.Process(
            target=_become, args=(inherited, receive, theirs, taking), name=f"receiving-{number}", daemon=True
        )
        process.start()
        theirs.close()
        taking.close()
        forks.append(Fork(process, ours, handover))
    return forks


def _become(
    inherited: Sequence[Any],
    receive: Callable[[Connection[Any, Any], socket.socket], int],
    connection: Connection[Any, Any],
    taking: socket.socket,
) -> None:
    # The listener is told to stop, and tells this process; a terminal or a supervisor may tell both.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    for end in inherited:
        end.close()
    raise SystemExit(receive(connection, taking))


class _Association(Elsewhere):
    """Stands for an association, from the handing over of its connection to its end."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._ended = False

    def is_alive(self) -> bool:
        """Until it has ended, or its process has."""
        return not self._ended

    @property
    def is_established(self) -> bool:
        """Its process knows better, and says so when it is asked to report."""
        return not self._ended

    def report(self, commitment: Commitment, verdict: Verdict) -> bool:
        """Whether the sender has taken the result."""
        return bool(self._channel.ask("report", commitment, verdict, timeout=_REPORT_S))

    def end(self) -> None:
        """It is over."""
        self._ended = True


class Recorder:
    """Objects of all processes that wait at the same moment are recorded together, by one thread."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._waiting: list[tuple[StoredObject, datetime, Future[Recorded]]] = []
        self._news = threading.Condition()

    def add(self, stored: StoredObject, now: datetime) -> Future[Recorded]:
        """Its outcome will be there once it is committed."""
        outcome: Future[Recorded] = Future()
        with self._news:
            self._waiting.append((stored, now, outcome))
            self._news.notify()
        return outcome

    def run(self) -> None:
        """For ever, in a daemon thread."""
        while True:
            with self._news:
                while not self._waiting:
                    self._news.wait()
                batch, self._waiting = self._waiting, []
            try:
                outcomes = self._record([(stored, now) for stored, now, _ in batch])
            except Exception as error:  # noqa: BLE001  # it is raised where the objects came from
                outcomes = [error] * len(batch)
            for (_, _, future), outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)


class _Receiving:
    """One receiving process: what it tells and asks is done here."""

    def __init__(
        self, forked: Fork, books: Books, recorder: Recorder, slow: ThreadPoolExecutor, may_end: Future[None]
    ) -> None:
        self._books = books
        self._slow = slow
        self._may_end = may_end
        self.drained = threading.Event()
        self._silent = 0
        self._lock = threading.Lock()
        self._associations: dict[int, _Association] = {}
        self._open: set[int] = set()
        self.process = forked.process
        self.ended = threading.Event()
        self._handover = forked.handover
        self.channel = Channel(
            forked.connection,
            {
                "admit": self._admit,
                "carry": lambda number, uid: books.associations.carry(self._association(number), uid),
                "record": recorder.add,
                "end": lambda number, released_at: books.associations.end(self._association(number), released_at),
                "closed": self._closed,
                "gone": self._gone,
                "refused": books.refusals.note,
                "commitment": self._commitment,
                "drained": self._drained,
                "counted": metrics.add,
            },
        )

    @property
    def connections(self) -> int:
        """How many are open."""
        with self._lock:
            return len(self._open)

    def take(self, number: int, connection: socket.socket, address: Any) -> bool:
        """Hand a connection over; false if the process does not take any."""
        with self._lock:
            self._associations[number] = _Association(self.channel)
            self._open.add(number)
        try:
            socket.send_fds(self._handover, [f"{number} {address[0]} {address[1]}".encode()], [connection.fileno()])
        except OSError:  # it hangs, or is gone
            self._closed(number)
            self._gone(number)
            return False
        return True

    def check(self) -> None:
        """Raise if it does not answer."""
        self.channel.ask("check", timeout=_ANSWER_S)

    def kill_if_it_hangs(self) -> None:
        """Ask whether it lives; it has ended soon after it was silent too often."""
        try:
            self.check()
        except TimeoutError:
            self._silent += 1
        except TransientError:
            return  # it is gone
        else:
            self._silent = 0
        if self._silent == _MOST_SILENCE:
            log.error("a receiving process hangs and is killed", extra={"receiving_process": self.process.name})
            self.process.kill()

    def run(self) -> None:
        """Until the process has ended. Only here it is waited for: `multiprocessing` does not stand two threads."""
        self.channel.run()
        self._handover.close()
        self.process.join()
        self.drained.set()
        self.ended.set()
        with self._lock:
            numbers = list(self._associations)
        for number in numbers:
            association = self._association(number)
            self._closed(number)
            self._gone(number)
            self._books.associations.end(association, None)

    def _association(self, number: int) -> _Association:
        """One that is gone already counts as dead."""
        with self._lock:
            association = self._associations.get(number)
        if association is None:
            association = _Association(self.channel)
            association.end()
        return association

    def _admit(self, number: int, address: str) -> TurnedAway | None:
        return self._books.limits.admit(self._association(number), address)

    def _closed(self, number: int) -> None:
        with self._lock:
            self._open.discard(number)
        self._books.limits.leave(self._association(number))

    def _gone(self, number: int) -> None:
        with self._lock:
            association = self._associations.pop(number, None)
        if association is not None:
            association.end()

    def _drained(self) -> Future[None]:
        self.drained.set()
        return self._may_end

    def _commitment(
        self, transaction_uid: str, peer: Peer, requested: Sequence[Reference], number: int, now: datetime
    ) -> Future[object]:
        association = self._association(number)
        return self._slow.submit(self._books.commitments.take, transaction_uid, peer, requested, association, now)


@dataclass(frozen=True)
class Books:
    """What the processes share."""

    record: Record
    limits: Limits
    associations: CarriedStudies
    refusals: Refusals
    commitments: CommitmentRequests


class ReceivingProcesses:
    """The DICOM port of a listener that receives in several processes. Has the methods of `StorageScp`."""

    def __init__(self, forks: Sequence[Fork], books: Books, host: str, port: int, maximum_associations: int) -> None:
        """Bind the port; raises `OSError` if that cannot be done."""
        self._listening = bind(host, port)
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self._refusals = books.refusals
        self._most = maximum_associations + WAITING_ROOM
        self._numbers = 0
        self._draining = threading.Event()
        self._closing = threading.Event()
        self._died = threading.Event()
        self._recorder = Recorder(books.record)
        slow = ThreadPoolExecutor(4, thread_name_prefix="commitment-request")
        self._may_end: Future[None] = Future()
        self._receiving = [_Receiving(each, books, self._recorder, slow, self._may_end) for each in forks]
        self._accepting = self._thread("dicom", self._accept)

    @staticmethod
    def _thread(name: str, target: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=target, name=name, daemon=True)

    def start(self) -> None:
        """Accept connections from now on."""
        self._thread("recorder", self._recorder.run).start()
        for each in self._receiving:
            self._thread(each.process.name, partial(self._watch, each)).start()
        self._accepting.start()

    def _watch(self, receiving: _Receiving) -> None:
        receiving.run()
        if not self._draining.is_set():
            process = receiving.process
            log.error(
                "a receiving process has ended", extra={"receiving_process": process.name, "status": process.exitcode}
            )
            self._died.set()

    def run(self, stop: threading.Event) -> None:
        """A loop of the service: raises if a receiving process has ended; ends one that hangs."""
        asked_at = time.monotonic()
        while not stop.is_set():
            if self._died.wait(0.2):
                raise RuntimeError("a receiving process has ended")
            if time.monotonic() - asked_at >= _ANSWER_S:
                for each in self._receiving:
                    each.kill_if_it_hangs()
                asked_at = time.monotonic()

    def check(self) -> None:
        """Raise unless connections are accepted and served."""
        if self._draining.is_set() or self._died.is_set() or not self._accepting.is_alive():
            raise RuntimeError("the DICOM port does not accept associations")
        for each in self._receiving:
            each.check()

    def drain(self, grace_seconds: float) -> None:
        """Let each process end: new associations are rejected as transient, running ones get `grace_seconds`."""
        if self._draining.is_set():
            return
        self._draining.set()
        for each in self._receiving:
            each.channel.tell("drain", grace_seconds, soon=True)
        deadline = time.monotonic() + grace_seconds + _LAST_WORDS_S
        for each in self._receiving:
            if not each.drained.wait(max(0.0, deadline - time.monotonic())):
                log.error("a receiving process did not drain", extra={"receiving_process": each.process.name})
                each.process.kill()
        self._closing.set()
        self._accepting.join(_LAST_WORDS_S)
        self._listening.close()
        self._may_end.set_result(None)
        for each in self._receiving:
            if not each.ended.wait(_LAST_WORDS_S):
                each.process.kill()

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._listening, select.POLLIN)
        while not self._closing.is_set():
            if not poll.poll(100):
                continue
            try:
                connection, address = self._listening.accept()
            except BlockingIOError:
                continue
            except OSError as error:  # no more descriptors, above all
                log.warning("a connection was not accepted", extra={"error": os.strerror(error.errno or 0)})
                time.sleep(0.1)
                continue
            with connection:
                if not self._hand_over(connection, address):
                    self._refusals.note(Refusal.of_stranger(TurnedAway.TOO_MANY_CONNECTIONS, str(address[0])))

    def _hand_over(self, connection: socket.socket, address: Any) -> bool:
        """To the process that has the fewest; each connection costs it two threads."""
        if sum(each.connections for each in self._receiving) >= self._most:
            return False
        self._numbers += 1
        fewest_first = sorted(self._receiving, key=lambda each: each.connections)
        return any(each.take(self._numbers, connection, address) for each in fewest_first)
