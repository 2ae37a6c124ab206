"""Transactions of the dispatcher on its SQL database."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dispatcher.adapters import tables
from dispatcher.domain.holds import Hold
from dispatcher.domain.jobs import UNFINISHED, Job
from dispatcher.ports import Letter, Load, Pause, Unit
from pipeline.clock import Clock
from pipeline.database import Database
from pipeline.events import Event

_jobs, _tasks, _holds, _letters = tables.jobs, tables.task_outbox, tables.holds, tables.letters
_turns, _pauses, _versions = tables.site_turns, tables.pauses, tables.versions
_T = TypeVar("_T")
# Literals, so that the planner sees that the partial index fits, however many jobs have finished.
_open = _jobs.c.state.in_([sa.literal_column(f"'{state}'") for state in UNFINISHED])

# Table, its key, since when, and the states in which nobody needs a row any more.
_DECIDED = (
    (_jobs, _jobs.c.job_id, _jobs.c.finished_at, ("done", "superseded", "discarded")),
    (_holds, _holds.c.study_instance_uid, _holds.c.decided_at, ("released", "declined", "superseded")),
    (_letters, _letters.c.letter_id, _letters.c.at, ("replayed", "discarded")),
)


class SqlUnit:
    """`ports.Unit` on an open transaction."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock

    def job(self, job_id: str) -> Job | None:
        """The row, locked on PostgreSQL; SQLite's write transactions exclude each other anyway."""
        row = self._connection.execute(sa.select(_jobs).where(_jobs.c.job_id == job_id).with_for_update()).first()
        return None if row is None else _job(row)

    def jobs_of(self, study_instance_uid: str) -> Sequence[Job]:
        """All versions, oldest first."""
        query = sa.select(_jobs).where(_jobs.c.study_instance_uid == study_instance_uid)
        return [_job(row) for row in self._connection.execute(query.order_by(_jobs.c.study_version).with_for_update())]

    def newest_version(self, study_instance_uid: str) -> int:
        """The row, locked on PostgreSQL."""
        mine = _versions.c.study_instance_uid == study_instance_uid
        return self._connection.scalar(sa.select(_versions.c.newest).where(mine).with_for_update()) or 0

    def save_version(self, study_instance_uid: str, newest: int) -> None:
        """Update, or insert what is not there."""
        values = {"study_instance_uid": study_instance_uid, "newest": newest, "decided_at": self._clock.now()}
        self._put(_versions, _versions.c.study_instance_uid, values)

    def save(self, job: Job) -> None:
        """Update, or insert what is not there."""
        self._put(_jobs, _jobs.c.job_id, asdict(job))

    def publish(self, event: Event) -> None:
        """By way of the outbox."""
        tables.outbox.add(self._connection, event)

    def enqueue(self, job: Job, manifest: bytes) -> None:
        """By way of the task outbox."""
        self._add("enqueue", job.job_id, job.attempt, job.priority, manifest, job.queued_at, job.site)

    def withdraw(self, job_id: str, attempt: int) -> None:
        """An attempt not handed over yet never will be; one that was loses its manifest."""
        mine = sa.and_(_tasks.c.job_id == job_id, _tasks.c.attempt == attempt)
        self._connection.execute(_tasks.delete().where(mine))
        self._add("withdraw", job_id, attempt, "routine", None, self._clock.now(), "")

    def _add(
        self,
        action: str,
        job_id: str,
        attempt: int,
        priority: str,
        manifest: bytes | None,
        not_before: datetime,
        site: str,
    ) -> None:
        self._connection.execute(
            _tasks.insert().values(
                action=action,
                job_id=job_id,
                attempt=attempt,
                priority=priority,
                manifest=manifest,
                not_before=not_before,
                site=site,
            )
        )

    def overdue(self, now: datetime, limit: int) -> Sequence[str]:
        """By deadline."""
        query = sa.select(_jobs.c.job_id).where(_open, _jobs.c.deadline_at <= now).order_by(_jobs.c.deadline_at)
        return list(self._connection.scalars(query.limit(limit)))

    def awaited(self) -> int:
        """Unfinished jobs less rows still to be handed over."""
        unfinished = self._connection.scalar(sa.select(sa.func.count()).select_from(_jobs).where(_open)) or 0
        waiting = self._connection.scalar(
            sa.select(sa.func.count()).select_from(_tasks).where(_tasks.c.action == "enqueue")
        )
        return int(unfinished) - int(waiting or 0)

    def handed_over(self, job: Job) -> bool:
        """Whether no row of the attempt is left."""
        mine = sa.and_(_tasks.c.job_id == job.job_id, _tasks.c.attempt == job.attempt, _tasks.c.action == "enqueue")
        return self._connection.execute(sa.select(_tasks.c.id).where(mine)).first() is None

    def waiting(self) -> dict[str, int]:
        """Counted over the partial indices."""
        places = {"held": (_holds, "waiting"), "failed": (_jobs, "failed"), "dead_letters": (_letters, "waiting")}
        counts: dict[str, int] = {}
        for name, (table, state) in places.items():
            # A literal, so that the planner sees that the partial index fits.
            here = table.c.state == sa.literal_column(f"'{state}'")
            counts[name] = self._connection.scalar(sa.select(sa.func.count()).select_from(table).where(here)) or 0
        return counts

    def failed_jobs(self, limit: int) -> Sequence[Job]:
        """By the partial index."""
        query = sa.select(_jobs).where(_jobs.c.state == sa.literal_column("'failed'"))
        return [_job(row) for row in self._connection.execute(query.order_by(_jobs.c.finished_at.desc()).limit(limit))]

    def rest(self, site: str, until: datetime) -> None:
        """Hand no routine job of the site over before then."""
        self._put(_turns, _turns.c.site, {"site": site, "next_at": until})

    def hold(self, study_instance_uid: str) -> Hold | None:
        """The row, locked on PostgreSQL."""
        query = sa.select(_holds).where(_holds.c.study_instance_uid == study_instance_uid).with_for_update()
        row = self._connection.execute(query).first()
        return None if row is None else _made(Hold, row)

    def save_hold(self, hold: Hold) -> None:
        """Update, or insert what is not there."""
        self._put(_holds, _holds.c.study_instance_uid, asdict(hold))

    def holds(self, limit: int) -> Sequence[Hold]:
        """By the partial index."""
        query = sa.select(_holds).where(_holds.c.state == sa.literal_column("'waiting'"))
        return [_made(Hold, row) for row in self._connection.execute(query.order_by(_holds.c.held_at).limit(limit))]

    def letter(self, letter_id: str) -> Letter | None:
        """The row, locked on PostgreSQL."""
        row = self._connection.execute(sa.select(_letters).where(_letters.c.letter_id == letter_id).with_for_update())
        found = row.first()
        return None if found is None else _made(Letter, found)

    def save_letter(self, letter: Letter) -> None:
        """Update, or insert what is not there."""
        self._put(_letters, _letters.c.letter_id, asdict(letter))

    def letters(self, limit: int) -> Sequence[Letter]:
        """By the partial index."""
        query = sa.select(_letters).where(_letters.c.state == sa.literal_column("'waiting'"))
        rows = self._connection.execute(query.order_by(_letters.c.at.desc()).limit(limit))
        return [_made(Letter, row) for row in rows]

    def expire(self, before: datetime, limit: int) -> int:
        """By the partial indices."""
        gone = 0
        for table, key, since, states in _DECIDED:
            # Literals, so that the planner sees that the partial index fits.
            decided = table.c.state.in_([sa.literal_column(f"'{state}'") for state in states])
            old = sa.select(key).where(decided, since < before).order_by(since).limit(limit)
            gone += self._connection.execute(table.delete().where(key.in_(old.scalar_subquery()))).rowcount
        return gone

    def pause(self) -> Pause | None:
        """One row or none."""
        row = self._connection.execute(sa.select(_pauses)).first()
        since = None if row is None else _aware(row.since)
        return None if row is None or since is None else Pause(since, row.reason)

    def set_pause(self, pause: Pause | None) -> None:
        """One row or none."""
        self._connection.execute(_pauses.delete())
        if pause is not None:
            self._connection.execute(_pauses.insert().values(only=1, since=pause.since, reason=pause.reason))

    def _put(self, table: sa.Table, key: sa.Column[Any], values: dict[str, Any]) -> None:
        done = self._connection.execute(table.update().where(key == values[key.name]).values(values))
        if done.rowcount == 0:
            self._connection.execute(table.insert().values(values))

    def load(self) -> dict[str, Load]:
        """One row per priority and state."""
        query = (
            sa.select(_jobs.c.priority, _jobs.c.state, sa.func.count(), sa.func.min(_jobs.c.queued_at))
            .where(_open)
            .group_by(_jobs.c.priority, _jobs.c.state)
        )
        found: dict[str, Load] = {}
        for priority, state, count, oldest in self._connection.execute(query):
            part = found.get(priority, Load(0, 0, None))
            times = [moment for moment in (part.oldest_queued_at, _aware(oldest)) if moment is not None]
            found[priority] = Load(
                part.queued + (count if state == "queued" else 0),
                part.running + (count if state == "running" else 0),
                min(times, default=None),
            )
        return found


class SqlUnits:
    """`ports.Units` on a `Database`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    @contextlib.contextmanager
    def write(self) -> Iterator[Unit]:
        """A write transaction."""
        with self._database.write() as connection:
            yield SqlUnit(connection, self._clock)

    @contextlib.contextmanager
    def read(self) -> Iterator[Unit]:
        """A read transaction."""
        with self._database.read() as connection:
            yield SqlUnit(connection, self._clock)


def _aware(moment: Any) -> datetime | None:
    """SQLite gives times back without their zone (all are UTC), and as text where SQL has computed on them."""
    if moment is None:
        return None
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    assert isinstance(moment, datetime)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _job(row: sa.Row[Any]) -> Job:
    return _made(Job, row)


def _made(cls: Callable[..., _T], row: sa.Row[Any]) -> _T:
    """The object of a row whose columns are its fields."""
    values = dict(row._mapping)
    return cls(**{name: _aware(value) if isinstance(value, datetime) else value for name, value in values.items()})
