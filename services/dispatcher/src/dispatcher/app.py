"""The composition root of the dispatcher."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from sqlalchemy.engine import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from dispatcher.adapters import tables
from dispatcher.adapters.celery_queue import CeleryQueue
from dispatcher.adapters.commands import COMMANDS, run_command
from dispatcher.adapters.operations import operation_routes
from dispatcher.adapters.relay import TaskRelay
from dispatcher.adapters.store import SqlUnit, SqlUnits
from dispatcher.desk import Desk
from dispatcher.domain.jobs import Limits
from dispatcher.handlers import GROUP, Handlers, outstanding
from dispatcher.ports import TaskQueue, Unit, Units
from dispatcher.settings import Settings
from pipeline.bus import Bus
from pipeline.buses import make_bus
from pipeline.clock import Clock, SystemClock
from pipeline.consume import EventConsumer
from pipeline.consume import Handler as EventHandler
from pipeline.database import Database, is_transient
from pipeline.events import (
    ALL_TOPICS,
    REPORT_FAILED,
    REPORT_GENERATED,
    REPORT_STARTED,
    STUDY_COMPLETED,
    Event,
    dead_letter_topic,
)
from pipeline.outbox import OutboxRelay
from pipeline.service import ServiceRunner
from pipeline.settings import load_settings
from pipeline.store import make_object_store

log = logging.getLogger(__name__)

DESCRIPTION = f"""Decides which studies get a report and hands them to the workers.

With a command, does what an operator asks for on the same database instead of serving:
{COMMANDS}"""

ANSWERS = (REPORT_STARTED, REPORT_GENERATED, REPORT_FAILED)
_EXPIRY_S = 3600.0
MIGRATIONS = Path(__file__).parent / "migrations"


def limits_of(settings: Settings) -> Limits:
    """The jobs' limits in the domain's terms."""
    return Limits(
        max_attempts=settings.max_attempts,
        retry_backoff=timedelta(seconds=settings.retry_backoff_s),
        queue_deadline=timedelta(seconds=settings.queue_deadline_s),
        run_deadline=timedelta(seconds=settings.run_deadline_s),
    )


def event_handlers(handlers: Handlers, clock: Clock) -> dict[str, EventHandler]:
    """Topic -> what is done in its event's transaction."""

    def on(use_case: Callable[[Unit, Event], None]) -> EventHandler:
        def handle(connection: Connection, event: Event) -> None:
            use_case(SqlUnit(connection, clock), event)

        return handle

    return {
        STUDY_COMPLETED: on(handlers.study_completed),
        REPORT_STARTED: on(handlers.report_started),
        REPORT_GENERATED: on(handlers.report_generated),
        REPORT_FAILED: on(handlers.report_failed),
        **{dead_letter_topic(topic): on(handlers.event_buried) for topic in (STUDY_COMPLETED, *ANSWERS)},
    }


def handlers_of(settings: Settings, clock: Clock) -> Handlers:
    """The use cases with a site's settings."""
    return Handlers(settings.policy(), limits_of(settings), settings.model_version, clock)


def operate(argv: Sequence[str]) -> int:
    """One operator's command on the service's database, whether the service runs or not; returns the exit status."""
    settings = load_settings(Settings, DESCRIPTION, [])
    clock = SystemClock()
    database = Database(settings.database_url.get_secret_value())
    try:
        database.migrate(MIGRATIONS)
        return run_command(argv, Desk(SqlUnits(database, clock), handlers_of(settings, clock), clock), sys.stdout)
    finally:
        database.close()


class SweepLoop:
    """Looks for overdue jobs, keeps the gauges current, and once an hour deletes what is older than `keep`."""

    def __init__(
        self,
        handlers: Handlers,
        units: Units,
        queue: TaskQueue,
        bus: Bus,
        clock: Clock,
        interval_s: float,
        keep: timedelta | None,
    ) -> None:
        self._handlers = handlers
        self._units = units
        self._queue = queue
        self._bus = bus
        self._clock = clock
        self._interval_s = interval_s
        self._keep = keep
        self._next_expiry = 0.0

    def caught_up(self) -> bool:
        """Whether every answer of the workers was heard."""
        return self._bus.lag(GROUP, ANSWERS) == 0

    def run(self, stop: threading.Event) -> None:
        """Until stopped; what is away is waited for."""
        while not self._clock.wait(stop, self._interval_s):
            try:
                self._handlers.sweep(self._units, self._queue, self.caught_up)
                with self._units.read() as unit:
                    outstanding(unit.load(), unit.awaited(), unit.waiting(), self._clock.now())
                if self._keep is not None and self._clock.monotonic() >= self._next_expiry:
                    self._handlers.expire(self._units, self._keep, stop)
                    self._next_expiry = self._clock.monotonic() + _EXPIRY_S
            except Exception as error:
                if not is_transient(error):
                    raise
                log.warning("sweep waits", extra={"error": type(error).__name__})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service until SIGTERM; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-"):
        return operate(argv)
    settings = load_settings(Settings, DESCRIPTION, argv)
    runner = ServiceRunner("dispatcher", settings)
    clock = SystemClock()
    database = Database(settings.database_url.get_secret_value())
    runner.prepare("ECHO_DATABASE_URL", lambda: database.migrate(MIGRATIONS))
    bus = make_bus(settings)
    runner.prepare("ECHO_BUS_URL", lambda: bus.ensure_topics(ALL_TOPICS))
    store = make_object_store(settings)
    queue = CeleryQueue(settings.broker_url.get_secret_value(), settings.visibility_timeout_s)
    producer = bus.producer()
    units = SqlUnits(database, clock)
    handlers = handlers_of(settings, clock)

    consumer = EventConsumer(bus, GROUP, event_handlers(handlers, clock), database, tables.inbox, clock)
    runner.add_loop("consumer", consumer.run)
    runner.add_loop("outbox", OutboxRelay(database, tables.outbox, producer, clock).run)
    pace = timedelta(seconds=60 / settings.site_reports_per_minute if settings.site_reports_per_minute else 0)
    relay = TaskRelay(database, store, queue, clock, ahead=settings.max_handed_over, site_interval=pace)
    runner.add_loop("tasks", relay.run)
    keep = timedelta(days=settings.retain_jobs_days) if settings.retain_jobs_days else None
    runner.add_loop("sweep", SweepLoop(handlers, units, queue, bus, clock, settings.sweep_interval_s, keep).run)
    for close in (database.close, bus.close, producer.close, queue.close):
        runner.on_stop(close)

    def show_outstanding(_request: Request) -> JSONResponse:  # starlette runs a plain function in a thread
        with units.read() as unit:
            return JSONResponse(
                outstanding(unit.load(), unit.awaited(), unit.waiting(), clock.now())
                | {"paused": unit.pause() is not None}
            )

    checks = {"database": database.ping, "bus": bus.ping, "task_queue": queue.ping, "object_store": store.ping}
    desk = Desk(units, handlers, clock)
    return runner.run(checks, [Route("/v1/outstanding", show_outstanding), *operation_routes(desk)])
