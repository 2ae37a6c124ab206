"""Storage commitment: requests are written down before they are answered; results are sent until they are taken."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from dicom_listener import metrics
from dicom_listener.domain.commitment import Reference, Verdict, judge
from dicom_listener.handlers.refusals import RefusalBook
from dicom_listener.ports import Peer, Refusal
from pipeline.clock import Clock
from pipeline.database import is_transient
from pipeline.store import ObjectStore

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 600.0
_SENDERS, _AT_ONCE = 64, 8


@dataclass(frozen=True)
class Commitment:
    """A request whose result the sender has not taken yet."""

    id: int
    transaction_uid: str
    peer: Peer
    requested: tuple[Reference, ...]
    created_at: datetime
    attempts: int


class Commitments(Protocol):
    """The database's side. Every method is one transaction."""

    def add(self, transaction_uid: str, peer: Peer, requested: Sequence[Reference], now: datetime) -> int:
        """Write a request down, or find it if the same sender asked the same before and waits still; returns its id."""
        ...

    def due(self, now: datetime, limit: int) -> Sequence[Commitment]:
        """One of each sender that is to be sent now, or was put off by a clock that has been set back since."""
        ...

    def objects(self, sop_instance_uids: Sequence[str]) -> Sequence[tuple[str, str, str]]:
        """(SOP Instance UID, SOP Class UID, object key) of indexed objects."""
        ...

    def postpone(self, id_: int, until: datetime) -> None:
        """The sender did not take the result."""
        ...

    def finish(self, id_: int, outcome: str, now: datetime) -> None:
        """The sender took it, or nobody will."""
        ...

    def forget(self, before: datetime) -> None:
        """Delete what was finished longer ago."""
        ...


class Reporter(Protocol):
    """Sends N-EVENT-REPORT requests."""

    def report(self, commitment: Commitment, verdict: Verdict) -> bool:
        """Whether the sender has taken the result."""
        ...


class CommitmentLoop:
    """Judges at the moment of sending, so that what was deleted in between is not promised.

    Each sender is told one result at a time, several senders at once: one that is away holds up the others for one
    attempt at most.
    """

    def __init__(
        self,
        commitments: Commitments,
        store: ObjectStore,
        reporter: Reporter,
        refusals: RefusalBook,
        clock: Clock,
        *,
        give_up_after: timedelta = timedelta(hours=24),
        keep: timedelta = timedelta(days=30),
    ) -> None:
        self._commitments = commitments
        self._store = store
        self._reporter = reporter
        self._refusals = refusals
        self._clock = clock
        self._give_up_after = give_up_after
        self._keep = keep
        self._next_prune = 0.0
        self._stop = threading.Event()
        self.wakeup = threading.Event()

    def step(self) -> int:
        """Send what is due, one result for each sender; returns how many were taken."""
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="commitment") as pool:
            taken = sum(pool.map(self._send, self._commitments.due(self._clock.now(), _SENDERS)))
        if self._clock.monotonic() >= self._next_prune:
            self._commitments.forget(self._clock.now() - self._keep)
            self._next_prune = self._clock.monotonic() + 3600
        return taken

    def _send(self, commitment: Commitment) -> bool:
        if self._stop.is_set():
            return False
        verdict = self._verdict(commitment)
        now = self._clock.now()
        if self._reporter.report(commitment, verdict):
            outcome = "failures" if verdict.failed else "committed"
            self._commitments.finish(commitment.id, outcome, now)
            metrics.COMMITMENTS.labels(outcome=outcome).inc()
            log.info(
                "storage commitment told",
                extra={"committed": len(verdict.committed), "failed": len(verdict.failed)},
            )
            return True
        if now - commitment.created_at > self._give_up_after:
            self._commitments.finish(commitment.id, "undeliverable", now)
            metrics.COMMITMENTS.labels(outcome="undeliverable").inc()
            text = "the result of a storage commitment could not be sent"
            self._refusals.note(Refusal("request", "commitment_undeliverable", text, commitment.peer))
        else:
            pause = min(LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(commitment.attempts, 20))
            self._commitments.postpone(commitment.id, now + timedelta(seconds=pause))
        return False

    def _verdict(self, commitment: Commitment) -> Verdict:
        durable: dict[str, set[str]] = {}
        for sop_instance, sop_class, key in self._commitments.objects(
            [reference.sop_instance_uid for reference in commitment.requested]
        ):
            if self._store.exists(key):
                durable.setdefault(sop_instance, set()).add(sop_class)
        return judge(commitment.requested, durable)

    def run(self, stop: threading.Event) -> None:
        """Until stopped; an unreachable database or store is waited for."""
        self._stop = stop
        while not stop.is_set():
            try:
                if self.step():
                    continue  # there may be more of the same sender
            except Exception as error:
                if not is_transient(error):
                    raise
                log.warning("storage commitment waits", extra={"error": type(error).__name__})
                self._clock.wait(stop, 2.0)
            self.wakeup.wait(0.5)
            self.wakeup.clear()
