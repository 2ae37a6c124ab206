"""Every "no" that a sender is told: counted, logged, written down and published.

A PACS repeats what was refused, and a scanner knocks without end. So the same refusal again within some seconds is one
entry with a count, and the sender never waits for the database to hear its answer.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from datetime import datetime

from dicom_listener import metrics
from dicom_listener.ports import CountedRefusal, Ledger, Refusal
from pipeline.clock import Clock
from pipeline.database import is_transient

log = logging.getLogger(__name__)

_WINDOW_S = 10.0
_MOST = 5000  # different refusals that may wait: an attacker must not fill the memory
_AT_ONCE = 100  # written by one flush: nor the event bus


@dataclass
class _Waiting:
    first_at: datetime
    last_at: datetime
    count: int


class RefusalBook:
    """Thread-safe. `note` only remembers; the loop `run` writes."""

    def __init__(self, ledger: Ledger, clock: Clock, *, window_s: float = _WINDOW_S) -> None:
        self._ledger = ledger
        self._clock = clock
        self._window_s = window_s
        self._lock = threading.Lock()
        self._waiting: dict[Refusal, _Waiting] = {}
        self._written_at: dict[Refusal, float] = {}
        self._news = threading.Event()

    def note(self, refusal: Refusal) -> None:
        """Count and log it, and remember it for the next `flush`."""
        metrics.REFUSALS.labels(scope=refusal.scope, reason=refusal.reason).inc()
        log.warning(
            "refused",
            extra={
                "scope": refusal.scope,
                "reason": refusal.reason,
                "status": refusal.answer,
                "detail": refusal.text,
                "calling_ae_title": refusal.peer.calling_ae_title,
                "address": refusal.peer.address,
            },
        )
        now = self._clock.now()
        with self._lock:
            waiting = self._waiting.get(refusal)
            if waiting is not None:
                waiting.count += 1
                waiting.last_at = now
            elif len(self._waiting) < _MOST:
                self._waiting[refusal] = _Waiting(now, now, 1)
            else:
                metrics.REFUSALS_UNTOLD.inc()
        self._news.set()

    def flush(self, *, everything: bool = False) -> int:
        """Write what waits, except repetitions within the window (unless `everything`); returns how many entries."""
        monotonic = self._clock.monotonic()
        with self._lock:
            for refusal in [r for r, at in self._written_at.items() if monotonic - at >= self._window_s]:
                del self._written_at[refusal]
            due = [r for r in self._waiting if everything or r not in self._written_at][:_AT_ONCE]
            taken = {refusal: self._waiting.pop(refusal) for refusal in due}
        if not taken:
            return 0
        counted = [CountedRefusal(r, w.count, w.first_at, w.last_at) for r, w in taken.items()]
        try:
            self._ledger.refuse(counted, self._clock.now())
        except Exception:
            self._give_back(taken)
            raise
        with self._lock:
            self._written_at.update(dict.fromkeys(taken, monotonic))
        return len(taken)

    def _give_back(self, taken: dict[Refusal, _Waiting]) -> None:
        with self._lock:
            for refusal, earlier in taken.items():
                later = self._waiting.get(refusal)
                if later is not None:
                    later.first_at = earlier.first_at
                    later.count += earlier.count
                else:
                    self._waiting[refusal] = earlier

    def run(self, stop: threading.Event) -> None:
        """Until stopped; an unreachable database is waited for."""
        while not stop.is_set():
            self._news.wait(0.25)
            self._news.clear()
            if not self._flushed(everything=False):
                self._clock.wait(stop, 1.0)

    def close(self) -> None:
        """Write all that waits, once nothing is refused any more."""
        while self._waiting and self._flushed(everything=True):
            pass

    def _flushed(self, *, everything: bool) -> bool:
        try:
            self.flush(everything=everything)
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("refusals wait for the database", extra={"error": type(error).__name__})
            return False
        return True
