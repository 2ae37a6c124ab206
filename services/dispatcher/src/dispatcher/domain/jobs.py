"""The life of a job, as pure functions: a job and something that happened in, what is to be done out.

Events come late, twice, and from attempts that were given up: every function answers None when nothing changes.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from dispatcher.domain.eligibility import Priority

State = Literal["queued", "running", "done", "failed", "superseded", "discarded"]
UNFINISHED: tuple[State, ...] = ("queued", "running")
EXHAUSTED = "attempts_exhausted"
WRONG_MODEL_VERSION = "wrong_model_version"
"""A worker's error code: it runs another model version than the job is pinned to, and has not begun."""
_NAMESPACE = uuid.UUID("5f0d1ad1-6d3f-5d52-9b8f-6f3b4f0c6c51")


@dataclass(frozen=True)
class Limits:
    """How long and how often."""

    max_attempts: int = 3
    retry_backoff: timedelta = timedelta(seconds=5)
    queue_deadline: timedelta = timedelta(seconds=120)
    run_deadline: timedelta = timedelta(seconds=300)


@dataclass(frozen=True)
class Job:
    """One report to be written on one version of one study.

    `attempt` numbers the times it was queued; `starts` counts the times a worker began. `model_version` may be another
    than the one in `job_id`, where the site has changed it since. `site` is the AE title that the
    study was sent to. `assumed`: what the headers left open, which the worker then looks for in the image itself.
    """

    job_id: str
    study_instance_uid: str
    study_version: int
    model_version: str
    priority: Priority
    images: Sequence[Mapping[str, Any]]
    queued_at: datetime
    deadline_at: datetime
    state: State = "queued"
    attempt: int = 1
    starts: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error_code: str | None = None
    error_text: str | None = None
    site: str = ""
    assumed: Sequence[str] = ()
    evidence: Sequence[str] = ()

    @property
    def finished(self) -> bool:
        """Whether nothing more is awaited."""
        return self.state not in UNFINISHED

    @property
    def manifest_ref(self) -> str:
        """Object key of what the worker reads for the present attempt."""
        return manifest_ref(self.job_id, self.attempt)


@dataclass(frozen=True)
class Change:
    """The job as it is now, and what follows from it."""

    job: Job
    enqueue: bool = False
    """Queue the job's attempt, not before `job.queued_at`."""
    suspect: bool = False
    """A worker began the job before and gave no answer: it may end each worker, so that it is worked on alone."""
    withdraw: int | None = None
    """Take the manifest of this attempt away, so that its task does nothing when it comes back."""
    announce_failure: bool = False
    """Tell the others that no attempt follows (a worker's own final failure was told already)."""


def manifest_ref(job_id: str, attempt: int) -> str:
    """Object key of an attempt's manifest."""
    return f"manifests/{job_id}-{attempt}.json"


def job_id(study_instance_uid: str, study_version: int, model_version: str) -> str:
    """The same study version and model version always give the same job."""
    return str(uuid.uuid5(_NAMESPACE, f"{study_instance_uid}#{study_version}#{model_version}"))


def created(
    study_instance_uid: str,
    study_version: int,
    model_version: str,
    priority: Priority,
    images: Sequence[Mapping[str, Any]],
    now: datetime,
    limits: Limits,
    *,
    site: str = "",
    assumed: Sequence[str] = (),
    evidence: Sequence[str] = (),
) -> Change:
    """A new job, to be queued at once."""
    job = Job(
        job_id=job_id(study_instance_uid, study_version, model_version),
        study_instance_uid=study_instance_uid,
        study_version=study_version,
        model_version=model_version,
        priority=priority,
        images=images,
        queued_at=now,
        deadline_at=now + limits.queue_deadline,
        site=site,
        assumed=list(assumed),
        evidence=list(evidence),
    )
    return Change(job, enqueue=True)


def superseded(job: Job, now: datetime) -> Change | None:
    """A newer version of the study was decided on, or the same one for another model."""
    if job.finished:
        return None
    return Change(replace(job, state="superseded", finished_at=now), withdraw=job.attempt)


def started(job: Job, attempt: int, now: datetime, limits: Limits) -> Change | None:
    """A worker began. One start too many ends the job: its task came back each time because it ended its worker."""
    if job.finished or attempt != job.attempt:
        return None
    begun = replace(job, starts=job.starts + 1)
    if begun.starts > limits.max_attempts:
        return _exhausted(begun, now, "each of them ended without an answer")
    return Change(replace(begun, state="running", started_at=now, deadline_at=now + limits.run_deadline))


def generated(job: Job, now: datetime) -> Change | None:
    """A report exists, whichever attempt wrote it; that of a superseded version changes nothing here."""
    if job.state in ("done", "superseded"):
        return None
    finished = replace(job, state="done", finished_at=now, error_code=None, error_text=None)
    return Change(finished, withdraw=job.attempt)


def failed(
    job: Job, attempt: int, code: str, text: str, retryable: bool, now: datetime, limits: Limits
) -> Change | None:
    """An attempt failed. A fault of the study itself is final; any other is tried again, later each time."""
    if job.finished:
        return None
    if not retryable:
        ended = replace(job, state="failed", finished_at=now, error_code=code, error_text=text)
        return Change(ended, withdraw=job.attempt)
    if attempt != job.attempt:
        return None
    counted = replace(job, starts=job.starts + (job.state == "queued"))  # the word of its start may still be under way
    if counted.starts >= limits.max_attempts:
        return _exhausted(counted, now, f"the last of them with {code}")
    return _again(counted, now, limits.retry_backoff * 2 ** (counted.starts - 1), limits, suspect=False)


def handed_back(job: Job, attempt: int, model_version: str, now: datetime, limits: Limits) -> Change | None:
    """A worker of another model version did not begin: that costs the study nothing, however often it happens.

    `model_version` is what the site asks for by now: a job that found no worker of an older version gets the new pin.
    """
    if job.finished or attempt != job.attempt:
        return None
    pinned = replace(job, model_version=model_version)
    pause = min(limits.retry_backoff * 2 ** min(attempt - 1, 10), limits.run_deadline)
    return _again(pinned, now, pause, limits, suspect=job.starts > 0)


def overdue(job: Job, lost: bool, now: datetime, limits: Limits) -> Change | None:
    """The deadline passed. `lost`: it was handed over, and the task queue holds fewer tasks than it was given.

    A job that only waits behind others stays where it is; queueing it anew would put it at the end each time.
    """
    if job.finished or job.deadline_at > now:
        return None
    if job.state == "queued":
        if not lost:
            return Change(replace(job, deadline_at=now + limits.queue_deadline))
        return _again(job, now, timedelta(0), limits, suspect=job.starts > 0)
    if job.starts >= limits.max_attempts:
        return _exhausted(job, now, "the last of them gave no answer in time")
    return _again(job, now, timedelta(0), limits, suspect=True)


def replayed(job: Job, model_version: str, now: datetime, limits: Limits) -> Change | None:
    """A person has a failed job tried again: with all its attempts, and vouching for what was only assumed.

    By the model version that the site asks for by now: that of the first try may be gone.
    """
    if job.state != "failed":
        return None
    fresh = replace(
        job, model_version=model_version, starts=0, finished_at=None, error_code=None, error_text=None, assumed=[]
    )
    return _again(fresh, now, timedelta(0), limits, suspect=job.error_code == EXHAUSTED)


def discarded(job: Job, now: datetime) -> Change | None:
    """A person gives up a failed job."""
    return Change(replace(job, state="discarded", finished_at=now)) if job.state == "failed" else None


def expedited(job: Job, now: datetime, limits: Limits) -> Change | None:
    """A waiting job moves to the urgent queue; one that a worker has is as fast as it gets."""
    if job.state != "queued" or job.priority == "stat":
        return None
    return _again(replace(job, priority="stat"), now, timedelta(0), limits, suspect=job.starts > 0)


def _again(job: Job, now: datetime, pause: timedelta, limits: Limits, *, suspect: bool) -> Change:
    queued_at = now + pause
    again = replace(
        job,
        state="queued",
        attempt=job.attempt + 1,
        queued_at=queued_at,
        deadline_at=queued_at + limits.queue_deadline,
        started_at=None,
    )
    return Change(again, enqueue=True, suspect=suspect, withdraw=job.attempt)


def _exhausted(job: Job, now: datetime, how: str) -> Change:
    text = f"{job.starts} attempts failed, {how}."
    ended = replace(job, state="failed", finished_at=now, error_code=EXHAUSTED, error_text=text)
    return Change(ended, withdraw=job.attempt, announce_failure=True)
