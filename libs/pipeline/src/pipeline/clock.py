"""Time as a parameter: services ask a clock that was passed in, so tests of time-outs take milliseconds."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> datetime:
        """Wall-clock time, always in UTC and aware."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go backwards; only differences mean something."""
        ...

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        """Sleep for `seconds` or until `stop` is set; true when it is set."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Wall-clock time in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds of the machine's monotonic clock."""
        return time.monotonic()

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        """Sleep on the event itself, so that a stop is noticed at once."""
        return stop.wait(max(0.0, seconds))


class ManualClock:
    """A clock for tests: it moves only when told to, and waiting moves it."""

    def __init__(self, start: datetime | None = None) -> None:
        self._now = start or datetime(2026, 1, 1, tzinfo=UTC)
        self._monotonic = 0.0

    def now(self) -> datetime:
        """The set time."""
        return self._now

    def monotonic(self) -> float:
        """Seconds advanced so far."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds

    def set_wall(self, now: datetime) -> None:
        """Set the wall clock alone, backwards too, as an administrator or NTP may do."""
        self._now = now

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        """Advance instead of sleeping."""
        if not stop.is_set():
            self.advance(max(0.0, seconds))
        return stop.is_set()


def iso(moment: datetime) -> str:
    """RFC 3339 text of an aware time in UTC with microseconds, as events carry it."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_iso(text: str) -> datetime:
    """The aware UTC time of an RFC 3339 text."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)
