"""What the dispatcher needs from its database and from the task queue."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

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


class Unit(Protocol):
    """One transaction: all of it happens or none."""

    def job(self, job_id: str) -> Job | None:
        """The job, locked until the transaction ends."""
        ...

    def jobs_of(self, study_instance_uid: str) -> Sequence[Job]:
        """All jobs of all versions of a study."""
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

    def load(self) -> dict[str, Load]:
        """Unfinished jobs by priority."""
        ...


class Units(Protocol):
    """Opens transactions."""

    def write(self) -> AbstractContextManager[Unit]:
        """Committed when the block ends well, rolled back when it does not."""
        ...

    def read(self) -> AbstractContextManager[Unit]:
        """For questions only."""
        ...
