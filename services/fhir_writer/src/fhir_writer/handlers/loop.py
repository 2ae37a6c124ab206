"""The delivery loop: takes what is due from the schedule and works on it in a few threads."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from fhir_writer.handlers.delivery import DeliverReport
from fhir_writer.ports import Deliveries, Job
from pipeline.clock import Clock
from pipeline.database import is_transient

log = logging.getLogger(__name__)

_IDLE_S = 0.25


class DeliveryLoop:
    """Runs `DeliverReport` for due deliveries until stopped; running attempts are finished first."""

    def __init__(
        self, deliveries: Deliveries, deliver: DeliverReport, clock: Clock, wakeup: threading.Event, threads: int
    ) -> None:
        self._deliveries = deliveries
        self._deliver = deliver
        self._clock = clock
        self._wakeup = wakeup
        self._threads = threads

    def run(self, stop: threading.Event) -> None:
        """The loop of the service; an unreachable database is waited for."""
        free = threading.Semaphore(self._threads)
        with ThreadPoolExecutor(self._threads, thread_name_prefix="deliver") as pool:
            while not stop.is_set():
                if not self._round(pool, free):
                    self._wakeup.wait(_IDLE_S)
                    self._wakeup.clear()

    def _round(self, pool: ThreadPoolExecutor, free: threading.Semaphore) -> bool:
        """Start what is due and fits; false when nothing was."""
        slots = 0
        while slots < self._threads and free.acquire(blocking=False):
            slots += 1
        jobs: list[Job] = []
        try:
            if slots:
                jobs = self._deliveries.claim(self._clock.now(), slots)
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("schedule cannot be read", extra={"error": type(error).__name__})
        finally:
            for _ in range(slots - len(jobs)):
                free.release()
        for job in jobs:
            future = pool.submit(self._deliver.attempt, job)
            future.add_done_callback(lambda done: self._finished(done, free))
        return bool(jobs)

    def _finished(self, done: Future[None], free: threading.Semaphore) -> None:
        free.release()
        self._wakeup.set()
        error = done.exception()
        if error is not None:
            # The row keeps its lease and is taken again when that has run out; delivering twice changes nothing.
            log.error("attempt could not be written down", exc_info=error)
