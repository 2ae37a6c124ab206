"""Use cases: one function per event that comes in, the look for overdue jobs, and the figure of outstanding work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from prometheus_client import Counter, Gauge

from dispatcher.domain import jobs
from dispatcher.domain.eligibility import Policy, Skip, decide, study_of
from dispatcher.domain.jobs import Change, Limits
from dispatcher.ports import Load, TaskQueue, Unit, Units
from pipeline.clock import Clock, iso
from pipeline.events import REPORT_FAILED, REPORT_REQUESTED, STUDY_SKIPPED, Event, study_event
from pipeline.taskqueue import QUEUES
from pipeline.telemetry import study_ref

log = logging.getLogger(__name__)

SOURCE = "/dispatcher"
_SWEEP_BATCH = 200

STUDIES = Counter("echo_dispatcher_studies_total", "Study versions decided on", ["decision"])
JOBS_ENDED = Counter("echo_dispatcher_jobs_ended_total", "Jobs that reached an end", ["state", "code"])
REQUEUED = Counter("echo_dispatcher_requeued_total", "Attempts after the first", ["why"])
OUTSTANDING = Gauge("echo_dispatcher_outstanding", "Unfinished jobs", ["queue", "state"])
OLDEST = Gauge("echo_dispatcher_oldest_seconds", "Age of the oldest unfinished job", ["queue"])


class Handlers:
    """Rules, limits and time of one dispatcher; each method works inside the transaction it is given."""

    def __init__(self, policy: Policy, limits: Limits, model_version: str, clock: Clock) -> None:
        self._policy = policy
        self._limits = limits
        self._model_version = model_version
        self._clock = clock

    def study_completed(self, unit: Unit, event: Event) -> None:
        """Decide; queue a job and supersede those of older versions, or tell why there is none."""
        uid, version = event.data["study_instance_uid"], event.data["study_version"]
        now = self._clock.now()
        decision = decide(study_of(event.data), self._policy)
        if isinstance(decision, Skip):
            STUDIES.labels(decision=decision.code).inc()
            log.info("study skipped", extra={"study": study_ref(uid), "version": version, "reason": decision.code})
            reason = {"code": decision.code, "text": decision.text}
            unit.publish(study_event(STUDY_SKIPPED, SOURCE, uid, version, now, {"reason": reason}))
            return
        known = unit.jobs_of(uid)
        images = [image.reference() for image in decision.images]
        change = jobs.created(uid, version, self._model_version, decision.priority, images, now, self._limits)
        if any(job.study_version > version or job.job_id == change.job.job_id for job in known):
            log.info("study version known already", extra={"study": study_ref(uid), "version": version})
            return
        STUDIES.labels(decision="reported").inc()
        for older in known:
            self._apply(unit, jobs.superseded(older, now))
        self._apply(unit, change)
        log.info(
            "job queued",
            extra={
                "job_id": change.job.job_id,
                "study": study_ref(uid),
                "version": version,
                "images": len(decision.images),
                "priority": decision.priority,
                "assumed": list(decision.assumed),
            },
        )

    def report_started(self, unit: Unit, event: Event) -> None:
        """Note that a worker began."""
        job = unit.job(event.data["job_id"])
        if job is not None:
            self._apply(unit, jobs.started(job, event.data["attempt"], self._clock.now(), self._limits))

    def report_generated(self, unit: Unit, event: Event) -> None:
        """Close the job."""
        job = unit.job(event.data["job_id"])
        if job is not None:
            self._apply(unit, jobs.generated(job, self._clock.now()))

    def report_failed(self, unit: Unit, event: Event) -> None:
        """Try again or close the job; our own announcements come by here too and change nothing."""
        job = unit.job(event.data["job_id"])
        if job is None or event.source == SOURCE:
            return
        data, now = event.data, self._clock.now()
        code, text, retryable = data["error_code"], data["error_text"], data["retryable"]
        change = jobs.failed(job, data["attempt"], code, text, retryable, now, self._limits)
        if change is not None and change.enqueue:
            REQUEUED.labels(why="failed").inc()
        self._apply(unit, change)

    def sweep(self, units: Units, queue: TaskQueue, caught_up: Callable[[], bool]) -> int:
        """Put right what is overdue; returns how many jobs. Raises `QueueUnavailable` when that cannot be known.

        `caught_up` tells whether all that the workers said was heard: until then no job is called overdue.
        """
        with units.read() as unit:
            overdue = unit.overdue(self._clock.now(), _SWEEP_BATCH)
            before = unit.awaited()
        if not overdue:
            return 0
        held = queue.held()
        if not caught_up():
            return 0
        with units.write() as unit:
            # Counted before and after: a task handed over, or answered, in the meantime is not taken for lost.
            lost = held < min(before, unit.awaited())
            for job_id in overdue:
                job = unit.job(job_id)
                if job is None:
                    continue
                change = jobs.overdue(job, lost, self._clock.now(), self._limits)
                if change is not None and change.enqueue:
                    why = "lost" if job.state == "queued" else "silent"
                    REQUEUED.labels(why=why).inc()
                    log.warning("job queued again", extra={"job_id": job_id, "attempt": change.job.attempt, "why": why})
                self._apply(unit, change)
        return len(overdue)

    def _apply(self, unit: Unit, change: Change | None) -> None:
        if change is None:
            return
        job = change.job
        unit.save(job)
        if change.withdraw is not None:
            unit.withdraw(job.job_id, change.withdraw)
        if change.enqueue:
            requested = self._event(
                REPORT_REQUESTED,
                change,
                {"priority": job.priority, "deadline_at": iso(job.deadline_at), "images": list(job.images)},
            )
            unit.publish(requested)
            unit.enqueue(job, requested.to_bytes())
        if change.announce_failure:
            failure = {"error_code": job.error_code, "error_text": job.error_text, "retryable": False}
            unit.publish(self._event(REPORT_FAILED, change, failure))
        if job.finished:
            JOBS_ENDED.labels(state=job.state, code=job.error_code or "").inc()
            log.info("job ended", extra={"job_id": job.job_id, "state": job.state, "code": job.error_code})

    def _event(self, type_: str, change: Change, data: dict[str, Any]) -> Event:
        job = change.job
        both = {"job_id": job.job_id, "attempt": job.attempt, **data}
        return study_event(type_, SOURCE, job.study_instance_uid, job.study_version, self._clock.now(), both)


def outstanding(load: dict[str, Load], now: datetime) -> dict[str, Any]:
    """The answer of `/v1/outstanding`; refreshes the gauges on the way.

    Ages are seconds since the job's present attempt was queued.
    """
    queues: dict[str, dict[str, float | int]] = {}
    for priority, name in QUEUES.items():
        part = load.get(priority, Load(0, 0, None))
        age = max(0.0, (now - part.oldest_queued_at).total_seconds()) if part.oldest_queued_at else 0.0
        queues[name] = {
            "outstanding": part.queued + part.running,
            "queued": part.queued,
            "running": part.running,
            "oldest_age_s": round(age, 3),
        }
        OUTSTANDING.labels(queue=name, state="queued").set(part.queued)
        OUTSTANDING.labels(queue=name, state="running").set(part.running)
        OLDEST.labels(queue=name).set(age)
    total = {key: sum(int(queue[key]) for queue in queues.values()) for key in ("outstanding", "queued", "running")}
    return {**total, "oldest_age_s": max(queue["oldest_age_s"] for queue in queues.values()), "queues": queues}
