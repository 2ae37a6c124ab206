"""The hard limit: ends a process whose model or whose work on a study hangs."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator

from pipeline.clock import Clock

log = logging.getLogger(__name__)

EXIT_HUNG = 70
"""EX_SOFTWARE of sysexits(3)."""


class Watchdog:
    """Threads cannot be ended from outside, processes can: its tasks, not acknowledged, return to the queue.

    Two signs: work on one study that is older than the limit (its own deadline is shorter, so it hangs), or a model
    that has work and made no step for the limit.
    """

    def __init__(
        self, limit_s: float, stalled_s: Callable[[], float], clock: Clock, end: Callable[[int], object] = os._exit
    ) -> None:
        self._limit_s = limit_s
        self._stalled_s = stalled_s
        self._clock = clock
        self._end = end
        self._ids = itertools.count()
        self._begun: dict[int, float] = {}

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Work on one study."""
        key = next(self._ids)
        self._begun[key] = self._clock.monotonic()
        try:
            yield
        finally:
            del self._begun[key]

    def look(self) -> bool:
        """Whether something hangs; ends the process then."""
        oldest = max((self._clock.monotonic() - begun for begun in list(self._begun.values())), default=0.0)
        stalled = self._stalled_s()
        if max(oldest, stalled) <= self._limit_s:
            return False
        log.critical("hung, ending the process", extra={"oldest_s": round(oldest, 1), "stalled_s": round(stalled, 1)})
        self._end(EXIT_HUNG)
        return True

    def run(self, stop: threading.Event) -> None:
        """Look until told to stop; draining has a limit of its own."""
        pause = min(5.0, self._limit_s / 10)
        while not self._clock.wait(stop, pause):
            self.look()
