"""Use cases: one function per event that comes in, the look for overdue jobs, and the figure of outstanding work."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from prometheus_client import Counter, Gauge

from dispatcher.domain import holds, jobs
from dispatcher.domain.eligibility import REASONS, Ask, Policy, Skip, decide
from dispatcher.domain.holds import Hold
from dispatcher.domain.jobs import Change, Job, Limits
from dispatcher.domain.study import study_of
from dispatcher.ports import Letter, Load, TaskQueue, Unit, Units
from pipeline.clock import Clock, iso
from pipeline.events import REPORT_FAILED, REPORT_REQUESTED, STUDY_SKIPPED, Event, study_event
from pipeline.taskqueue import QUEUES
from pipeline.telemetry import study_ref

log = logging.getLogger(__name__)

SOURCE = "/dispatcher"
GROUP = "dispatcher"
_SWEEP_BATCH = 200

STUDIES = Counter("echo_dispatcher_studies_total", "Study versions decided on", ["decision"])
JOBS_ENDED = Counter("echo_dispatcher_jobs_ended_total", "Jobs that reached an end", ["state", "code"])
REQUEUED = Counter("echo_dispatcher_requeued_total", "Attempts after the first", ["why"])
OUTSTANDING = Gauge("echo_dispatcher_outstanding", "Unfinished jobs", ["queue", "state"])
WAITING = Gauge("echo_dispatcher_waiting_for_a_person", "Held studies, failed jobs and dead letters", ["what"])
HANDED_OVER = Gauge("echo_dispatcher_handed_over", "Unfinished jobs that are with the task queue or a worker")
OLDEST = Gauge("echo_dispatcher_oldest_seconds", "Age of the oldest unfinished job", ["queue"])


class Handlers:
    """Rules, limits and time of one dispatcher; each method works inside the transaction it is given."""

    def __init__(self, policy: Policy, limits: Limits, model_version: str, clock: Clock) -> None:
        self._policy = policy
        self._limits = limits
        self._model_version = model_version
        self._clock = clock

    def study_completed(self, unit: Unit, event: Event) -> None:
        """Decide; queue a job, or tell why there is none. What older versions wait for is superseded in any case.

        The newer version may show that the older one is not to be reported, by a birth date for example.
        """
        uid, version = event.data["study_instance_uid"], event.data["study_version"]
        now, study = self._clock.now(), study_of(event.data)
        hold = unit.hold(uid)
        if unit.newest_version(uid) > version or (hold is not None and hold.study_version == version):
            log.info("study version known already", extra={"study": study_ref(uid), "version": version})
            return
        unit.save_version(uid, version)
        if hold is not None and (superseded := holds.decided(hold, "superseded", now)) is not None:
            unit.save_hold(superseded)
        known = unit.jobs_of(uid)
        for older in (job for job in known if job.study_version < version):
            self.apply(unit, jobs.superseded(older, now))
        decision = decide(study, self._policy)
        if isinstance(decision, Skip):
            STUDIES.labels(decision=decision.code).inc()
            log.info("study skipped", extra={"study": study_ref(uid), "version": version, "reason": decision.code})
            self.tell_skipped(unit, uid, version, decision.code, decision.text, decision.evidence)
            return
        if isinstance(decision, Ask):
            STUDIES.labels(decision="held").inc()
            log.info("study held", extra={"study": study_ref(uid), "version": version, "reasons": decision.codes})
            unit.save_hold(holds.held(uid, version, decision, study.called_ae_title, now))
            evidence = (*decision.codes, *decision.select.evidence)
            self.tell_skipped(unit, uid, version, decision.codes[0], decision.text, evidence, person_must_act=True)
            return
        images = [image.reference() for image in decision.images]
        change = jobs.created(
            uid,
            version,
            self._model_version,
            decision.priority,
            images,
            now,
            self._limits,
            site=study.called_ae_title,
            assumed=decision.assumed,
            evidence=decision.evidence,
        )
        self.queue_new(unit, change, [job for job in known if job.study_version == version])

    def queue_new(self, unit: Unit, change: Change, known: Sequence[Job]) -> bool:
        """Queue a new job in the place of those known of its study; False when it was queued before."""
        job = change.job
        extra = {"job_id": job.job_id, "study": study_ref(job.study_instance_uid), "version": job.study_version}
        wanted = (job.study_version, job.model_version)
        if any(other.job_id == job.job_id or (other.study_version, other.model_version) == wanted for other in known):
            log.info("study version known already", extra=extra)
            return False
        STUDIES.labels(decision="reported").inc()
        for older in known:
            self.apply(unit, jobs.superseded(older, self._clock.now()))
        self.apply(unit, change)
        more = {"images": len(job.images), "priority": job.priority, "assumed": list(job.assumed)}
        log.info("job queued", extra={**extra, **more})
        return True

    def release(self, unit: Unit, hold: Hold) -> bool:
        """Report a held study after all; False when that was decided before."""
        now = self._clock.now()
        released = holds.decided(hold, "released", now)
        if released is None:
            return False
        unit.save_hold(released)
        change = holds.job_of(hold, self._model_version, now, self._limits)
        self.queue_new(unit, change, unit.jobs_of(hold.study_instance_uid))
        return True

    def decline(self, unit: Unit, hold: Hold) -> bool:
        """No report for a held study; False when that was decided before."""
        declined = holds.decided(hold, "declined", self._clock.now())
        if declined is None:
            return False
        unit.save_hold(declined)
        code = "declined_by_person"
        self.tell_skipped(unit, hold.study_instance_uid, hold.study_version, code, REASONS[code], hold.evidence)
        return True

    def replay(self, unit: Unit, job: Job) -> bool:
        """Try a failed job again; False for one that did not fail, or whose study has a newer version."""
        newer = unit.newest_version(job.study_instance_uid) > job.study_version
        change = None if newer else jobs.replayed(job, self._model_version, self._clock.now(), self._limits)
        if change is not None:
            REQUEUED.labels(why="person").inc()
        self.apply(unit, change)
        return change is not None

    def discard(self, unit: Unit, job: Job) -> bool:
        """Give up a failed job; False for one that did not fail."""
        change = jobs.discarded(job, self._clock.now())
        self.apply(unit, change)
        if change is not None:
            code = "discarded_by_person"
            self.tell_skipped(unit, job.study_instance_uid, job.study_version, code, REASONS[code], job.evidence)
        return change is not None

    def expedite(self, unit: Unit, job: Job) -> bool:
        """Move a waiting job to the urgent queue; False for any other."""
        change = jobs.expedited(job, self._clock.now(), self._limits)
        self.apply(unit, change)
        return change is not None

    def event_buried(self, unit: Unit, event: Event) -> None:
        """Keep what this service itself gave up, so that a person can have it tried again."""
        data = event.data
        if data["consumer"] != GROUP:
            return
        letter = Letter(
            letter_id=event.id,
            at=event.time,
            topic=data["topic"],
            key=data["key"],
            value=base64.b64decode(data["value_base64"]),
            error_code=data["error_code"],
            attempts=data["attempts"],
        )
        unit.save_letter(letter)

    def tell_skipped(
        self,
        unit: Unit,
        uid: str,
        version: int,
        code: str,
        text: str,
        evidence: Sequence[str],
        *,
        person_must_act: bool = False,
    ) -> None:
        """Say that a version gets no report, or none before a person has decided."""
        data = {
            "reason": {"code": code, "text": text},
            "evidence": list(dict.fromkeys(evidence)),
            "person_must_act": person_must_act,
        }
        unit.publish(study_event(STUDY_SKIPPED, SOURCE, uid, version, self._clock.now(), data))

    def report_started(self, unit: Unit, event: Event) -> None:
        """Note that a worker began."""
        job = unit.job(event.data["job_id"])
        if job is not None:
            self.apply(unit, jobs.started(job, event.data["attempt"], self._clock.now(), self._limits))

    def report_generated(self, unit: Unit, event: Event) -> None:
        """Close the job."""
        job = unit.job(event.data["job_id"])
        if job is not None:
            self.apply(unit, jobs.generated(job, self._clock.now()))

    def report_failed(self, unit: Unit, event: Event) -> None:
        """Try again or close the job; our own announcements come by here too and change nothing."""
        job = unit.job(event.data["job_id"])
        if job is None or event.source == SOURCE:
            return
        data, now = event.data, self._clock.now()
        code, text, retryable = data["error_code"], data["error_text"], data["retryable"]
        if code == jobs.WRONG_MODEL_VERSION:
            change = jobs.handed_back(job, data["attempt"], self._model_version, now, self._limits)
        else:
            change = jobs.failed(job, data["attempt"], code, text, retryable, now, self._limits)
        if change is not None and change.enqueue:
            REQUEUED.labels(why="failed" if code != jobs.WRONG_MODEL_VERSION else "model_version").inc()
        self.apply(unit, change)

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
                gone = lost and unit.handed_over(job)
                change = jobs.overdue(job, gone, self._clock.now(), self._limits)
                if change is not None and change.enqueue:
                    why = "lost" if job.state == "queued" else "silent"
                    REQUEUED.labels(why=why).inc()
                    log.warning("job queued again", extra={"job_id": job_id, "attempt": change.job.attempt, "why": why})
                self.apply(unit, change)
        return len(overdue)

    def expire(self, units: Units, keep: timedelta, stop: threading.Event) -> int:
        """Delete what ended longer ago than `keep`, in small steps, so that events are not held up; returns how many.

        What waits for a person stays, and so do the studies' newest versions.
        """
        before, total = self._clock.now() - keep, 0
        while not stop.is_set():
            with units.write() as unit:
                gone = unit.expire(before, _SWEEP_BATCH)
            if gone == 0:
                break
            total += gone
        if total:
            log.info("old rows deleted", extra={"rows": total})
        return total

    def apply(self, unit: Unit, change: Change | None) -> None:
        """Save a change and what follows from it."""
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
                {
                    "priority": job.priority,
                    "deadline_at": iso(job.deadline_at),
                    "images": list(job.images),
                    "model_version": job.model_version,
                    "assumed": list(job.assumed),
                    "evidence": list(job.evidence),
                    "suspect": change.suspect,
                },
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


def outstanding(load: dict[str, Load], handed_over: int, waiting: dict[str, int], now: datetime) -> dict[str, Any]:
    """The answer of `/v1/outstanding`; refreshes the gauges on the way.

    Ages are seconds since the job's present attempt was queued. `handed_over`: how many of the unfinished jobs are with
    the task queue or a worker; while paused, 0 says that the workers are drained. `waiting`: what waits for a person.
    """
    HANDED_OVER.set(handed_over)
    for what, count in waiting.items():
        WAITING.labels(what=what).set(count)
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
    oldest = max(queue["oldest_age_s"] for queue in queues.values())
    return {
        **total,
        "handed_over": handed_over,
        "oldest_age_s": oldest,
        "queues": queues,
        "waiting_for_a_person": waiting,
    }
