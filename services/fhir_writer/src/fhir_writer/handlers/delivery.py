"""One attempt to deliver one report, and what its end means for the schedule and for people."""

from __future__ import annotations

import logging
import random
import threading
from dataclasses import replace
from datetime import timedelta

from prometheus_client import Counter, Gauge, Histogram

from fhir_writer.domain.outcome import Delivered, DeliveryError, Overtaken, PatientNotFound, Refused, Unavailable
from fhir_writer.domain.schedule import CircuitBreaker, RetryPolicy
from fhir_writer.domain.study import draft_report, study_facts
from fhir_writer.handlers.intake import SOURCE
from fhir_writer.ports import Change, Deliveries, Destination, Job
from pipeline.clock import Clock, iso
from pipeline.database import is_transient
from pipeline.events import REPORT_DELIVERED, REPORT_REJECTED, Event, study_event
from pipeline.telemetry import study_ref
from pipeline.tracing import trace

log = logging.getLogger(__name__)

ATTEMPTS = Counter("echo_fhir_attempts_total", "Attempts to deliver, by how they ended", ["outcome"])
LATENCY = Histogram(
    "echo_fhir_delivery_seconds",
    "From the draft being written to its being in the EHR",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200),
)
EHR_UP = Gauge("echo_fhir_ehr_up", "1 when the last attempt reached the EHR, 0 when it did not")
BREAKER_OPEN = Gauge("echo_fhir_breaker_open", "1 while attempts are held back because the EHR does not answer")

WAITING_FOR_STUDY = "waiting_for_study"
CONFLICT = "ehr_conflict"


class DeliverReport:
    """Works on claimed deliveries; safe to call from several threads."""

    def __init__(
        self,
        deliveries: Deliveries,
        destination: Destination,
        clock: Clock,
        *,
        policy: RetryPolicy,
        breaker: CircuitBreaker,
        fhir_server: str,
        park_out_of_domain: bool = False,
        chance: random.Random | None = None,
    ) -> None:
        self._deliveries = deliveries
        self._destination = destination
        self._clock = clock
        self._policy = policy
        self._breaker = breaker
        self._fhir_server = fhir_server
        self._park_out_of_domain = park_out_of_domain
        self._chance = chance or random.Random()
        self._lock = threading.Lock()

    def attempt(self, job: Job) -> None:
        """Try once and write down how it ended. Raises only when the service's own database fails."""
        try:
            self._attempt(job)
        finally:
            self._deliveries.let_go(job)

    def _attempt(self, job: Job) -> None:
        with trace(job.traceparent):
            try:
                change, event = self._try(job)
            except DeliveryError as error:
                change, event = self._after(job, error)
            except Overtaken:
                # Written only to give the lease back, if it is still ours: the schedule is no longer this attempt's.
                change, event = Change("pending", self._clock.now(), job.attempts, "overtaken"), None
            except Exception as error:
                if is_transient(error):
                    raise
                log.exception("attempt failed", extra={"study": study_ref(job.study_instance_uid)})
                change, event = self._after(
                    job, Refused("internal_error", f"The writer failed on this report ({type(error).__name__}).")
                )
            self._deliveries.settle(job, change, event, self._clock.now())
        outcome = change.delivered.result if change.delivered else change.reason_code or change.state
        ATTEMPTS.labels(outcome=outcome).inc()
        log.info(
            "delivery attempt",
            extra={
                "study": study_ref(job.study_instance_uid),
                "version": job.study_version,
                "job_id": job.job_id,
                "outcome": outcome,
                "state": change.state,
                "attempt": change.attempts,
                "http_status": change.http_status,
            },
        )

    def _try(self, job: Job) -> tuple[Change, Event | None]:
        now = self._clock.now()
        if job.study is None:
            pause = min(30.0, self._policy.study_poll_s * (1 + job.attempts))
            return Change(
                "pending",
                now + timedelta(seconds=pause),
                job.attempts + 1,
                WAITING_FOR_STUDY,
                "The study's own event has not come yet.",
            ), None
        if self._park_out_of_domain and not job.released and "out_of_domain" in job.report["flags"]:
            raise Refused("out_of_domain", "The image lies outside the model's domain; held for a person to release.")
        self._ask_breaker()
        delivered = self._deliver(job)
        LATENCY.observe(max(0.0, (now - job.written_at).total_seconds()))
        return (
            Change("delivered", None, job.attempts + 1, delivered=delivered),
            self._event(
                REPORT_DELIVERED,
                job,
                {
                    "job_id": job.job_id,
                    "fhir_server": self._fhir_server,
                    "resource_type": "DiagnosticReport",
                    "resource_id": delivered.resource_id,
                    "resource_version": delivered.resource_version,
                    "result": delivered.result,
                },
            ),
        )

    def _ask_breaker(self) -> None:
        with self._lock:
            pause = self._breaker.ask(self._clock.monotonic())
        if pause > 0:
            raise _HeldBack(pause)

    def _deliver(self, job: Job) -> Delivered:
        assert job.study is not None
        reached = True
        try:
            return self._destination.deliver(
                study_facts(job.study),
                draft_report(job.report, job.written_at),
                lambda: self._deliveries.still_due(job),
            )
        except Unavailable as error:
            reached = error.code == CONFLICT  # a matter of one report: the EHR did answer
            raise
        finally:
            with self._lock:
                ended = self._breaker.succeeded() if reached else False
                if not reached:
                    self._breaker.failed(self._clock.monotonic())
                BREAKER_OPEN.set(self._breaker.is_open)
            EHR_UP.set(reached)
            if ended:
                log.info("the EHR answers again")
                self._deliveries.wake_outage(self._clock.now())

    def _after(self, job: Job, error: DeliveryError) -> tuple[Change, Event | None]:
        now = self._clock.now()
        change = Change(
            "parked", None, job.attempts + 1, error.code, error.text, error.http_status, error.operation_outcome
        )
        if isinstance(error, Unavailable):
            with self._lock:
                pause = self._policy.pause(job.attempts + 1, self._chance.random(), error.retry_after_s)
            held_back = isinstance(error, _HeldBack)
            change = replace(
                change,
                state="pending",
                next_attempt_at=now + timedelta(seconds=pause),
                outage_told=True,
                attempts=job.attempts if held_back else job.attempts + 1,
                patient_wait_since=job.patient_wait_since,
            )
            # Once an outage and study: a person sees why it waits, without a line for every attempt.
            return change, None if job.outage_told else self._rejection(job, change, person_must_act=False)
        if isinstance(error, PatientNotFound):
            since = job.patient_wait_since or now
            change = replace(change, patient_wait_since=since)
            again = self._policy.patient_retry(since, now)
            if again is not None:
                return replace(change, state="pending", next_attempt_at=again), None
            if self._policy.patient_recheck_s > 0:
                change = replace(change, next_attempt_at=now + timedelta(seconds=self._policy.patient_recheck_s))
            if job.state == "parked" and job.reason_code == error.code:
                return change, None  # said when it was parked
        return change, self._rejection(job, change, person_must_act=True)

    def _rejection(self, job: Job, change: Change, *, person_must_act: bool) -> Event:
        outcome = change.operation_outcome
        return self._event(
            REPORT_REJECTED,
            job,
            {
                "job_id": job.job_id,
                "reason": {"code": change.reason_code, "text": (change.reason_text or "")[:1024]},
                "http_status": change.http_status,
                "operation_outcome": outcome[:4000] if outcome else None,
                "person_must_act": person_must_act,
                "next_attempt_at": iso(change.next_attempt_at) if change.next_attempt_at else None,
            },
        )

    def _event(self, type_: str, job: Job, data: dict[str, object]) -> Event:
        return study_event(type_, SOURCE, job.study_instance_uid, job.study_version, self._clock.now(), data)


class _HeldBack(Unavailable):
    """No attempt was made: the circuit breaker is open."""

    def __init__(self, pause: float) -> None:
        super().__init__(
            "ehr_unavailable", "The FHIR server does not answer; it is tried again by itself.", retry_after_s=pause
        )
