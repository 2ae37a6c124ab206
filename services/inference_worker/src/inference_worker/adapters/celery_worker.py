"""Celery inside this process: a thread pool that serves two queues, drains on request, and can give tasks back.

`WorkController` is Celery's worker without its command line: it installs no signal handlers and no logging of its own,
both of which belong to the service here.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.exceptions import Reject
from celery.worker import WorkController, state
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from pipeline.errors import TransientError
from pipeline.taskqueue import QUEUES, TASK_GENERATE_REPORT, celery_config

log = logging.getLogger(__name__)

_CONSUMER_END_S, _GIVE_UP_S, _RESTART_PAUSE_S = 3.0, 6.0, 1.0

Process = Callable[[str, bool], object]
"""(manifest reference, redelivered) -> anything; raises `TransientError` to have the task come back."""


class QueueUnavailable(TransientError):
    """The broker cannot be reached."""


def make_app(broker_url: str, visibility_timeout_s: int, concurrency: int, process: Process) -> Celery:
    """The Celery application with its one task."""
    app = Celery("inference_worker")
    app.conf.update(celery_config(broker_url, visibility_timeout_s))
    app.conf.update(
        # Threads share the one model, so that studies are batched. They take no time limits from Celery and cannot be
        # ended by it: the deadline is in the model, the hard limit is the watchdog's.
        worker_pool="threads",
        worker_concurrency=concurrency,
        # The default gives up after 100 attempts; a broker that is away for an hour must be waited for.
        broker_connection_max_retries=None,
        # Work goes on while the broker is away: the event is what counts, the task is given again at worst.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )

    @app.task(name=TASK_GENERATE_REPORT, bind=True)  # type: ignore[untyped-decorator]  # celery publishes no types
    def generate_report(task: Any, job_id: str, attempt: int, manifest_ref: str) -> None:
        redelivered = bool((task.request.delivery_info or {}).get("redelivered"))
        try:
            process(manifest_ref, redelivered)
        except TransientError as error:
            log.warning("task goes back", extra={"job_id": job_id, "attempt": attempt, "error": type(error).__name__})
            raise Reject(type(error).__name__, requeue=True) from error

    return app


class CeleryWorker:
    """Takes tasks until told to stop, then finishes those it has."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self.consuming = threading.Event()
        self.drained = threading.Event()
        self._controller = self._new_controller()

    def _new_controller(self) -> WorkController:
        return WorkController(
            app=self._app,
            queues=list(QUEUES.values()),  # in the order of priority
            loglevel="INFO",
            without_mingle=True,  # workers have nothing to tell each other
            without_gossip=True,
            without_heartbeat=True,
            ready_callback=lambda _consumer: self.consuming.set(),
        )

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set; returns when the tasks in hand are done."""

        def warn() -> None:
            stop.wait()
            state.should_stop = 0  # Celery's loop looks at it and shuts down warmly

        threading.Thread(target=warn, name="celery-stop", daemon=True).start()
        try:
            self._controller.start()
            while not stop.is_set():
                # A broker that dies while it is spoken to can end Celery's consumer for good (kombu gives tasks back
                # on a connection that is no more). The tasks in hand were finished; the model stays loaded.
                log.error("celery ended by itself, starting it anew")
                self.consuming.clear()
                stop.wait(_RESTART_PAUSE_S)
                state.reset_state()
                state.should_stop = None
                if stop.is_set():  # asked last: `warn` may have told Celery just before
                    state.should_stop = 0
                self._app.pool.force_close_all()
                self._controller = self._new_controller()
                self._controller.start()
        finally:
            self.consuming.clear()
            self.drained.set()

    def give_back(self) -> int:
        """Put every task in hand at the head of its queue again; returns how many.

        The threads work on, so the process has to end right after. Celery's own ways (SIGQUIT, `Request.reject`) give
        nothing back with a thread pool. A consumer that still listens would take such a task again and die with it, so
        its end is waited for first.
        """
        until = time.monotonic() + _CONSUMER_END_S
        while time.monotonic() < until and getattr(self._controller.consumer, "connection", None) is not None:
            time.sleep(0.02)
        count = 0
        for request in _in_hand():
            if not request.acknowledged:
                request.message.requeue()
                count += 1
        return count

    def ping(self) -> None:
        """Raise `QueueUnavailable` unless the broker answers."""
        try:
            with self._app.connection_for_read() as connection:
                connection.default_channel.client.ping()
        except (OperationalError, RedisError, OSError) as error:
            raise QueueUnavailable("the broker does not answer") from error


def _in_hand() -> set[Any]:
    while True:
        try:
            return {*state.reserved_requests, *state.active_requests}
        except RuntimeError:  # a thread has ended one while they were walked over
            continue


def end_now(worker: CeleryWorker) -> None:
    """Give the tasks back and end the process with status 1; after six seconds without them."""
    timer = threading.Timer(_GIVE_UP_S, os._exit, args=(1,))  # a broker that hangs must not keep the process
    timer.daemon = True
    timer.start()
    try:
        log.warning("gave tasks back, ending", extra={"tasks": worker.give_back()})
    except Exception:
        log.exception("tasks could not be given back; the visibility timeout brings them back")
    os._exit(1)
