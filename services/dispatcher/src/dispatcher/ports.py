"""What the dispatcher needs from its database and from the task queue."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from dispatcher.domain.holds import Hold
from dispatcher.domain.jobs import Job
from pipeline.errors import TransientError
from pipeline.events import Event
from pipeline.taskqueue import Priority


class QueueUnavailable(TransientError):
    """The task queue's broker cannot be reached."""


class TaskQueue(Protocol):
    """Celery's queues as the dispatcher sees them. Every call raises `QueueUnavailable` while the broker is away."""

    def enqueue(self, job_id: str, attempt: int, manifest_ref: str, priority: Priority) -> None:
        """Hand one attempt to the workers."""
        ...

    def held(self) -> int:
        """Tasks in the broker: waiting in a queue, or delivered and not acknowledged."""
        ...

    def ping(self) -> None:
        """Return when the broker answers."""
        ...


@dataclass(frozen=True)
class Load:
    """Unfinished jobs of one priority."""

    queued: int
    running: int
    oldest_queued_at: datetime | None


@dataclass(frozen=True)
class Letter:
    """An event that this service gave up, with its bytes."""

    letter_id: str
    at: datetime
    topic: str
    key: str
    value: bytes
    error_code: str
    attempts: int
    state: str = "waiting"


@dataclass(frozen=True)
class Pause:
    """No job is handed over since then, for this reason."""

    since: datetime
    reason: str


class Unit(Protocol):
    """One transaction: all of it happens or none."""

    def job(self, job_id: str) -> Job | None:
        """The job, locked until the transaction ends."""
        ...

    def jobs_of(self, study_instance_uid: str) -> Sequence[Job]:
        """All jobs of all versions of a study."""
        ...

    def newest_version(self, study_instance_uid: str) -> int:
        """The newest version of the study that was decided on, whatever came of it; 0 for none."""
        ...

    def save_version(self, study_instance_uid: str, newest: int) -> None:
        """Note that this version is decided on."""
        ...

    def save(self, job: Job) -> None:
        """Insert or update."""
        ...

    def publish(self, event: Event) -> None:
        """Send the event once the transaction is committed."""
        ...

    def enqueue(self, job: Job, manifest: bytes) -> None:
        """Hand the job's attempt to the workers, not before its `queued_at`, once the transaction is committed."""
        ...

    def withdraw(self, job_id: str, attempt: int) -> None:
        """Make the attempt's task do nothing, once the transaction is committed."""
        ...

    def overdue(self, now: datetime, limit: int) -> Sequence[str]:
        """Ids of unfinished jobs whose deadline has passed, the most overdue first."""
        ...

    def awaited(self) -> int:
        """How many tasks the broker should hold: unfinished jobs less those not handed over yet."""
        ...

    def handed_over(self, job: Job) -> bool:
        """Whether the job's present attempt went to the broker."""
        ...

    def load(self) -> dict[str, Load]:
        """Unfinished jobs by priority."""
        ...

    def waiting(self) -> dict[str, int]:
        """How much waits for a person: `held` studies, `failed` jobs, `dead_letters`."""
        ...

    def failed_jobs(self, limit: int) -> Sequence[Job]:
        """Jobs that ended without a report and that nobody has discarded, newest first."""
        ...

    def hold(self, study_instance_uid: str) -> Hold | None:
        """The study's newest hold, decided or not, locked until the transaction ends."""
        ...

    def save_hold(self, hold: Hold) -> None:
        """Insert, or take the place of the study's older one."""
        ...

    def holds(self, limit: int) -> Sequence[Hold]:
        """Those that wait for a person, oldest first."""
        ...

    def letter(self, letter_id: str) -> Letter | None:
        """A dead letter, locked until the transaction ends."""
        ...

    def save_letter(self, letter: Letter) -> None:
        """Insert or update."""
        ...

    def letters(self, limit: int) -> Sequence[Letter]:
        """Dead letters that wait for a person, newest first."""
        ...

    def expire(self, before: datetime, limit: int) -> int:
        """Delete up to `limit` each of jobs, holds and letters that nobody waits for since before then; how many."""
        ...

    def pause(self) -> Pause | None:
        """The pause that holds now."""
        ...

    def set_pause(self, pause: Pause | None) -> None:
        """Begin a pause, or end it."""
        ...


class Units(Protocol):
    """Opens transactions."""

    def write(self) -> AbstractContextManager[Unit]:
        """Committed when the block ends well, rolled back when it does not."""
        ...

    def read(self) -> AbstractContextManager[Unit]:
        """For questions only."""
        ...
