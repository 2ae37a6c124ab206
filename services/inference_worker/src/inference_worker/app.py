"""The composition root of the inference worker.

Signals: the first SIGTERM or SIGINT drains (no new tasks, those in hand are finished, within the grace period); the
second gives the tasks in hand back to the queue and ends the process with status 1.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Sequence

from inference_worker.adapters.celery_worker import CeleryWorker, end_now, make_app
from inference_worker.adapters.frontal import looks_frontal
from inference_worker.adapters.pixels import PydicomDecoder
from inference_worker.gate import Gate
from inference_worker.handlers import Reporter
from inference_worker.ports import ReportModel
from inference_worker.settings import DRAIN_MARGIN_S, Settings
from inference_worker.watchdog import Watchdog
from pipeline.buses import make_bus
from pipeline.clock import SystemClock
from pipeline.events import ALL_TOPICS
from pipeline.service import ServiceRunner, on_end_signals
from pipeline.settings import load_settings
from pipeline.store import make_object_store

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the worker until SIGTERM; returns the exit status."""
    settings = load_settings(Settings, "Takes report jobs from the queue and writes draft reports.", argv)
    runner = ServiceRunner("inference_worker", settings)
    # Loads torch, which takes seconds: `--help` and a wrong setting are answered without it.
    from inference_worker.adapters.model import EngineModel, load_engine

    begun = time.monotonic()
    engine = load_engine(settings.model, settings.device, settings.concurrency, settings.torch_threads)
    runner.on_stop(engine.close)
    model = EngineModel(engine)
    log.info(
        "model loaded",
        extra={
            "model": model.model_id,
            "version": model.model_version,
            "device": str(engine.loaded.device),
            "seconds": round(time.monotonic() - begun, 2),
        },
    )
    return serve(settings, runner, model)


def serve(settings: Settings, runner: ServiceRunner, model: ReportModel) -> int:
    """Take tasks for a model that is loaded, until SIGTERM; returns the exit status."""
    clock = SystemClock()
    bus = make_bus(settings)
    runner.prepare("ECHO_BUS_URL", lambda: bus.ensure_topics(ALL_TOPICS))
    producer = bus.producer()
    store = make_object_store(settings)
    watchdog = Watchdog(settings.watchdog_s, model.stalled_s, clock)
    reporter = Reporter(
        store,
        producer,
        PydicomDecoder(settings.max_image_pixels, settings.max_object_bytes, settings.decode_parallel),
        looks_frontal,
        model,
        clock,
        Gate(),
        watchdog,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        deadline_s=settings.request_deadline_s,
        max_object_bytes=settings.max_object_bytes,
        wait=time.sleep,
    )
    app = make_app(
        settings.broker_url.get_secret_value(),
        settings.visibility_timeout_s,
        settings.concurrency,
        lambda ref, redelivered: reporter.report(ref, redelivered=redelivered),
    )
    worker = CeleryWorker(app)

    def on_signal() -> None:
        if runner.stop.is_set():
            end_now(worker)
        runner.stop.set()

    def wait_until_consuming() -> None:
        on_end_signals(on_signal)
        while not worker.consuming.wait(0.1) and not runner.stop.is_set():
            pass

    def drain() -> None:
        if not worker.drained.wait(settings.termination_grace_s - DRAIN_MARGIN_S):
            log.error("not drained within the grace period")
            end_now(worker)

    runner.add_loop("celery", worker.run)
    runner.add_loop("watchdog", watchdog.run)
    for close in (bus.close, producer.close):
        runner.on_stop(close)
    checks = {"task_queue": worker.ping, "bus": bus.ping, "object_store": store.ping}
    return runner.run(checks, on_ready=wait_until_consuming, before_join=drain)
