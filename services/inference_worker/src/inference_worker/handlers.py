"""The one use case: from a task's manifest to an event that says generated or failed."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

from prometheus_client import Counter, Gauge, Histogram

from inference_worker.domain import IN_DOUBT, Fault, Timings, generated_data
from inference_worker.gate import Gate
from inference_worker.ports import GreyImage, PixelDecoder, ReportModel
from inference_worker.watchdog import Watchdog
from pipeline.bus import Message, Producer
from pipeline.clock import Clock
from pipeline.errors import InvalidEvent, ObjectNotFound, TransientError
from pipeline.events import REPORT_FAILED, REPORT_GENERATED, REPORT_STARTED, Event, study_event
from pipeline.store import ObjectStore
from pipeline.telemetry import study_ref
from pipeline.tracing import trace

log = logging.getLogger(__name__)
T = TypeVar("T")

SOURCE = "/inference_worker"
ANY_VERSION = "default"
"""The dispatcher's word for whatever model the workers run."""
Outcome = Literal["generated", "failed", "withdrawn"]

STUDIES = Counter("echo_worker_studies_total", "Tasks finished", ["outcome", "code"])
ACTIVE = Gauge("echo_worker_active", "Studies at work")
SECONDS = Histogram(
    "echo_worker_seconds",
    "Time per study by part",
    ["part"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
TOKENS = Counter("echo_worker_tokens_total", "Tokens of finished drafts")

_CHUNK = 2**20


class Reporter:
    """Writes the reports. Thread-safe; doing the same task twice says the same thing twice, which harms nobody."""

    def __init__(
        self,
        store: ObjectStore,
        producer: Producer,
        decoder: PixelDecoder,
        looks_frontal: Callable[[GreyImage], bool],
        model: ReportModel,
        clock: Clock,
        gate: Gate,
        watchdog: Watchdog,
        *,
        worker: str,
        deadline_s: float,
        max_object_bytes: int,
        wait: Callable[[float], object],
    ) -> None:
        self._store = store
        self._producer = producer
        self._decoder = decoder
        self._looks_frontal = looks_frontal
        self._model = model
        self._clock = clock
        self._gate = gate
        self._watchdog = watchdog
        self._worker = worker
        self._deadline_s = deadline_s
        self._max_object_bytes = max_object_bytes
        self._wait = wait

    def report(self, manifest_ref: str, *, redelivered: bool) -> Outcome:
        """Do one task. Raises `TransientError` when the world was away until the deadline: the task must come back.

        `redelivered`: the broker gave it before, and it was not acknowledged.
        """
        outcome = self._report(manifest_ref, alone=redelivered)
        if outcome is None:  # the manifest is read again: it may be withdrawn by the time the others are done
            outcome = self._report(manifest_ref, alone=True)
        assert outcome is not None
        return outcome

    def _report(self, manifest_ref: str, *, alone: bool) -> Outcome | None:
        """None, and nothing done, for a task that must be done alone and is not."""
        with self._gate.hold(alone=alone), self._watchdog.watch(), ACTIVE.track_inprogress():
            deadline = self._clock.monotonic() + self._deadline_s
            try:
                manifest = Event.from_bytes(self._patiently(lambda: self._read(manifest_ref), deadline))
            except (ObjectNotFound, InvalidEvent, Fault) as error:
                # The dispatcher took it away: the job is done, superseded or queued anew. One that is there but not
                # readable is queued anew after its deadline.
                return self._withdrawn(type(error).__name__)
            if manifest.data.get("suspect", False) and not alone:
                return None
            with trace(manifest.traceparent):
                return self._work(manifest, manifest_ref, deadline)

    def _work(self, manifest: Event, manifest_ref: str, deadline: float) -> Outcome:
        request = manifest.data
        fields = {
            "job_id": request["job_id"],
            "attempt": request["attempt"],
            "study": study_ref(request["study_instance_uid"]),
        }
        if request.get("model_version", ANY_VERSION) not in (ANY_VERSION, self._model.model_version):
            # Handed back before it is said to have started: that no fitting worker was there is no fault of the study.
            return self._fail(request, Fault("wrong_model_version"), fields, deadline)
        queue_s = (self._clock.now() - manifest.time).total_seconds()
        self._publish(REPORT_STARTED, request, {"worker": self._worker}, deadline)
        log.info("started", extra=fields)
        try:
            data = self._generate(request, queue_s, deadline)
        except TransientError:
            raise
        except Fault as fault:
            return self._fail(request, fault, fields, deadline)
        except Exception:
            log.exception("unexpected failure", extra=fields)
            return self._fail(request, Fault("internal_error"), fields, deadline)
        if not self._patiently(lambda: self._store.exists(manifest_ref), deadline):
            # A newer version of the study was decided on: the report may be against the site's policy by now.
            return self._withdrawn("while at work")
        self._publish(REPORT_GENERATED, request, data, deadline)
        STUDIES.labels(outcome="generated", code="").inc()
        TOKENS.inc(data["tokens"]["generated"])
        log.info("generated", extra={**fields, "flags": data["flags"], "timings": data["timings"]})
        return "generated"

    def _withdrawn(self, why: str) -> Outcome:
        log.info("task withdrawn", extra={"why": why})
        STUDIES.labels(outcome="withdrawn", code="").inc()
        return "withdrawn"

    def _generate(self, request: Mapping[str, Any], queue_s: float, deadline: float) -> dict[str, Any]:
        begun = self._clock.monotonic()
        images = [self._patiently(partial(self._image, image, deadline), deadline) for image in request["images"]]
        if IN_DOUBT.intersection(request.get("assumed", ())) and not self._looks_frontal(images[0]):
            raise Fault("not_a_frontal_chest")
        decoded = self._clock.monotonic()
        if decoded >= deadline:
            raise Fault("deadline_exceeded")
        draft = self._model.generate(images, deadline - decoded)
        timings = Timings(queue_s, decoded - begun, self._clock.monotonic() - decoded)
        SECONDS.labels(part="pixels").observe(timings.pixels_s)
        SECONDS.labels(part="generate").observe(timings.generate_s)
        return generated_data(request, draft, timings, self._model.model_id, self._model.model_version)

    def _image(self, image: Mapping[str, Any], deadline: float) -> GreyImage:
        if self._clock.monotonic() >= deadline:
            raise Fault("deadline_exceeded")
        try:
            data = self._read(image["object_ref"])
        except ObjectNotFound as error:
            raise Fault("object_missing") from error
        if hashlib.sha256(data).hexdigest() != image["sha256"]:
            raise Fault("object_corrupt")
        return self._decoder.decode(io.BytesIO(data), deadline - self._clock.monotonic())

    def _read(self, key: str) -> bytes:
        """An object whole, up to the limit. Raises `ObjectNotFound`, `TransientError`, `Fault`."""
        parts, size = [], 0
        with self._store.open(key) as file:
            while chunk := file.read(_CHUNK):
                size += len(chunk)
                if size > self._max_object_bytes:
                    raise Fault("image_too_large")
                parts.append(chunk)
        return b"".join(parts)

    def _fail(self, request: Mapping[str, Any], fault: Fault, fields: Mapping[str, Any], deadline: float) -> Outcome:
        log.warning("failed", extra={**fields, "code": fault.code})
        data = {"error_code": fault.code, "error_text": fault.text, "retryable": fault.retryable}
        self._publish(REPORT_FAILED, request, data, deadline)
        STUDIES.labels(outcome="failed", code=fault.code).inc()
        return "failed"

    def _publish(self, type_: str, request: Mapping[str, Any], data: Mapping[str, Any], deadline: float) -> None:
        uid, version = request["study_instance_uid"], request["study_version"]
        known = {"job_id": request["job_id"], "attempt": request["attempt"]}
        event = study_event(type_, SOURCE, uid, version, self._clock.now(), {**known, **data})
        self._patiently(lambda: self._producer.publish([Message(event.topic, event.key, event.to_bytes())]), deadline)

    def _patiently(self, call: Callable[[], T], deadline: float) -> T:
        """Once at least, and again while the world is away and there is time."""
        pause = 0.1
        while True:
            try:
                return call()
            except TransientError as error:
                if self._clock.monotonic() + pause >= deadline:
                    raise
                log.warning("waiting", extra={"error": type(error).__name__})
                self._wait(pause)
                pause = min(5.0, pause * 2)
