"""Hands queued attempts to Celery: the manifest is put first, then the task is sent, then the row goes.

No more is handed over than keeps the workers busy: what is in the broker can be neither held nor put in another order.
A crash in between repeats the step: the manifest is the same, and a task that is sent twice does its work twice without
harm, or finds its manifest withdrawn.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dispatcher.adapters.store import SqlUnit
from dispatcher.adapters.tables import pauses, site_turns, task_outbox
from dispatcher.domain.jobs import manifest_ref
from dispatcher.ports import TaskQueue
from pipeline.clock import Clock
from pipeline.database import Database, is_transient
from pipeline.store import ObjectStore

log = logging.getLogger(__name__)

_IDLE_S = 0.05
_BATCH = 100


class TaskRelay:
    """Works through the table `task_outbox`; while the service is paused it only withdraws.

    `ahead`: routine jobs wait here while so many jobs are with the broker and the workers. `site_interval`: between two
    routine jobs of one site, as they are handed over; zero for no limit. Urgent jobs never wait.
    """

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        queue: TaskQueue,
        clock: Clock,
        *,
        ahead: int,
        site_interval: timedelta = timedelta(0),
    ) -> None:
        self._database = database
        self._store = store
        self._queue = queue
        self._clock = clock
        self._ahead = ahead
        self._site_interval = site_interval

    def relay_once(self) -> int:
        """Hand over what is due; returns how many rows. Raises when a part of the world is away."""
        # No transaction stays open while Celery and the object store are spoken to. Should a second dispatcher read
        # the same rows, tasks are sent twice, which is harmless; a row that was withdrawn in between is followed by
        # the row that withdraws its manifest.
        with self._database.read() as connection:
            rows = self._due(connection)
        for row in rows:
            ref = manifest_ref(row.job_id, row.attempt)
            if row.action == "enqueue":
                self._store.put_bytes(row.manifest, ref)
                self._queue.enqueue(row.job_id, row.attempt, ref, row.priority)
            else:
                self._store.delete(ref)
            with self._database.write() as connection:
                connection.execute(task_outbox.delete().where(task_outbox.c.id == row.id))
                if self._paced(row):
                    SqlUnit(connection, self._clock).rest(row.site, self._clock.now() + self._site_interval)
        return len(rows)

    def _due(self, connection: Connection) -> list[sa.Row[Any]]:
        """Withdrawals; urgent jobs; routine ones as far as there is room, those queued again before the others."""
        enqueue, routine = task_outbox.c.action == "enqueue", task_outbox.c.priority == "routine"

        def oldest(limit: int, *which: sa.ColumnElement[bool]) -> Sequence[sa.Row[Any]]:
            due = sa.select(task_outbox).where(*which, task_outbox.c.not_before <= self._clock.now())
            return connection.execute(due.order_by(task_outbox.c.id).limit(limit)).all()

        rows = [*oldest(_BATCH, task_outbox.c.action == "withdraw")]
        if connection.execute(sa.select(pauses.c.only)).first() is not None:
            return rows
        rows += oldest(_BATCH, enqueue, task_outbox.c.priority == "stat")
        room = min(_BATCH, self._ahead - SqlUnit(connection, self._clock).awaited())
        resting = self._resting(connection) if self._site_interval else set()
        for attempt in (task_outbox.c.attempt > 1, task_outbox.c.attempt == 1):
            if room > 0:
                for row in oldest(room, enqueue, routine, attempt, task_outbox.c.site.not_in(resting)):
                    if not self._paced(row) or row.site not in resting:
                        rows.append(row)
                        room -= 1
                        if self._paced(row):
                            resting.add(row.site)
        return rows

    def _resting(self, connection: Connection) -> set[str]:
        """Sites whose turn has not come; one later than an interval from now is a clock's that was set back."""
        now, next_at = self._clock.now(), site_turns.c.next_at
        rests = sa.select(site_turns.c.site).where(next_at > now, next_at <= now + self._site_interval)
        return set(connection.scalars(rests))

    def _paced(self, row: sa.Row[Any]) -> bool:
        return bool(self._site_interval) and row.action == "enqueue" and row.priority == "routine"

    def run(self, stop: threading.Event) -> None:
        """Relay until stopped; what is away is waited for, with growing pauses up to 5 s."""
        failures = 0
        while not stop.is_set():
            try:
                pause = 0.0 if self.relay_once() else _IDLE_S
                failures = 0
            except Exception as error:
                if not is_transient(error):
                    raise
                failures += 1
                pause = min(5.0, 0.1 * 2**failures)
                log.warning("task relay waits", extra={"error": type(error).__name__, "failures": failures})
            self._clock.wait(stop, pause)
