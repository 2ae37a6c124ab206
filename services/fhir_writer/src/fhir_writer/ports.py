"""What the use cases need from the world. Each delivery mode implements `Destination`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from sqlalchemy.engine import Connection

from fhir_writer.domain.outcome import Delivered
from fhir_writer.domain.study import Draft, StudyFacts
from pipeline.events import Event


class Destination(Protocol):
    """Where reports go. Called from several threads, never twice at once for one study."""

    def deliver(self, study: StudyFacts, draft: Draft, still_due: Callable[[], bool]) -> Delivered:
        """Make the EHR hold this draft as the study's one report; the same call again changes nothing.

        `still_due` is asked between reading and each sending: what is sent then holds only for what was read before, so
        that whoever was stalled overwrites nothing newer. Raises `Refused` (a person must act; `PatientNotFound` among
        them), `Unavailable` (try again later), or `Overtaken` (nothing more was sent, as it is due no longer).
        """
        ...


@dataclass(frozen=True)
class Job:
    """A delivery taken from the schedule: this process alone works on it until the lease runs out."""

    study_instance_uid: str
    study_version: int
    job_id: str
    report: Mapping[str, Any]
    written_at: datetime
    study: Mapping[str, Any] | None
    """What was kept of the study's version; None while its event has not come."""
    traceparent: str
    state: str
    """`pending`, or `parked` when it is only looked at again."""
    reason_code: str | None
    attempts: int
    outage_told: bool
    released: bool
    """A person has asked for it: a hold set by a site's rule no longer applies."""
    patient_wait_since: datetime | None
    revision: int
    lease_id: str


@dataclass(frozen=True)
class Change:
    """What an attempt changes in a delivery's row."""

    state: str
    next_attempt_at: datetime | None
    attempts: int
    reason_code: str | None = None
    reason_text: str | None = None
    http_status: int | None = None
    operation_outcome: str | None = None
    outage_told: bool = False
    patient_wait_since: datetime | None = None
    delivered: Delivered | None = None


class Withdrawn(NamedTuple):
    """A draft that was taken back."""

    study_version: int
    job_id: str


class Deliveries(Protocol):
    """The schedule: one row a study, in the service's database."""

    def keep_study(self, connection: Connection, version: int, kept: Mapping[str, Any], now: datetime) -> None:
        """Keep one version of a study, and wake a delivery that waits for it."""
        ...

    def schedule(self, connection: Connection, event: Event, now: datetime) -> bool:
        """Enter or renew the study's delivery from `imaging.report.generated`; false for one older or withdrawn."""
        ...

    def withdraw(self, connection: Connection, uid: str, version: int, now: datetime) -> Withdrawn | None:
        """Take back what is not delivered of versions before `version`, and leave aside what still comes of them."""
        ...

    def tell(self, connection: Connection, event: Event) -> None:
        """Publish an event with the transaction."""
        ...

    def claim(self, now: datetime, limit: int) -> list[Job]:
        """Take up to `limit` due deliveries, each with a lease."""
        ...

    def settle(self, job: Job, change: Change, event: Event | None, now: datetime) -> None:
        """Write an attempt's end and its event, and give the lease back.

        When a newer draft came meanwhile, only what was delivered is recorded: the schedule is the newer one's.
        """
        ...

    def still_due(self, job: Job) -> bool:
        """Whether this process still has the lease, and nothing has changed in the schedule since it was taken."""
        ...

    def let_go(self, job: Job) -> None:
        """Nobody works on it any more: a lease that could not be given back is no longer renewed, and runs out."""
        ...

    def wake_outage(self, now: datetime) -> None:
        """Make everything due that waited for the EHR to come back."""
        ...
