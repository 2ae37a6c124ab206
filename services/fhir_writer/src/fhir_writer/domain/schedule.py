"""When the next attempt is due."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True)
class RetryPolicy:
    """Seconds. Growing pauses with jitter for an EHR that is away; short, even ones while registration may be late."""

    first_s: float = 1.0
    longest_s: float = 120.0
    longest_asked_s: float = 3600.0
    """A server's Retry-After is honoured up to this."""
    patient_grace_s: float = 20.0
    patient_poll_s: float = 2.0
    patient_recheck_s: float = 300.0
    """How often a study parked for an unknown patient is looked at again; 0 for never."""
    study_poll_s: float = 1.0

    def pause(self, failures: int, chance: float, asked_s: float | None = None) -> float:
        """After the `failures`-th failure (>= 1); `chance` in [0, 1) spreads it over its upper half."""
        if asked_s is not None:
            return min(max(asked_s, 0.0), self.longest_asked_s) + chance * self.first_s
        whole = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return whole * (0.5 + 0.5 * chance)

    def patient_retry(self, waiting_since: datetime, now: datetime) -> datetime | None:
        """When to look for the patient again, or None when the grace is over."""
        end = waiting_since + timedelta(seconds=self.patient_grace_s)
        if now >= end:
            return None
        return min(now + timedelta(seconds=self.patient_poll_s), end)


class CircuitBreaker:
    """Spares a server that does not answer: after some failures in a row, one probe at a time.

    Not thread-safe by itself: its owner holds a lock.
    """

    def __init__(self, failures: int = 5, open_s: float = 10.0) -> None:
        self._limit = failures
        self._open_s = open_s
        self._failures = 0
        self._resume_at = 0.0
        self._probing_until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether attempts are being held back."""
        return self._failures >= self._limit

    def ask(self, now_s: float) -> float:
        """0 when an attempt may start now, else the seconds after which to ask again. An allowed one must report."""
        if not self.is_open:
            return 0.0
        until = max(self._resume_at, self._probing_until)
        if now_s < until:
            return until - now_s
        self._probing_until = now_s + self._open_s
        return 0.0

    def succeeded(self) -> bool:
        """The server answered; true when that ends an outage."""
        was_open = self.is_open
        self._failures = 0
        self._probing_until = 0.0
        return was_open

    def failed(self, now_s: float) -> None:
        """The server did not answer, or said that it cannot."""
        self._failures += 1
        if self.is_open:
            self._resume_at = now_s + self._open_s
            self._probing_until = 0.0
