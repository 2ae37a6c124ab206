"""The composition root: settings to a running console."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.engine import Connection

from console.adapters import tables
from console.adapters.actions import Actions
from console.adapters.image_service import ImageService
from console.adapters.live import ChangeFeed
from console.adapters.projection import SqlProjection, begin_generation
from console.adapters.queries import Queries
from console.adapters.web import make_app
from console.handlers import project
from console.settings import Settings
from pipeline.buses import make_bus
from pipeline.clock import SystemClock
from pipeline.consume import EventConsumer
from pipeline.database import Database
from pipeline.events import ALL_TOPICS, Event
from pipeline.service import ServiceRunner
from pipeline.settings import load_settings
from pipeline.store import make_object_store

MIGRATIONS = Path(__file__).parent / "migrations"
_DESCRIPTION = "Read model of all events, REST API and pages: where each study stands, and its draft beside its image."


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; returns the exit status."""
    settings = load_settings(Settings, _DESCRIPTION, argv)
    runner = ServiceRunner("console", settings)
    clock = SystemClock()
    database = Database(settings.database_url.get_secret_value())
    runner.prepare("ECHO_DATABASE_URL", lambda: database.migrate(MIGRATIONS))
    runner.prepare("ECHO_DATABASE_URL", lambda: begin_generation(database, settings.projection_generation))
    bus = make_bus(settings)
    runner.prepare("ECHO_BUS_URL", lambda: bus.ensure_topics(ALL_TOPICS))

    def handle(connection: Connection, event: Event) -> None:
        project(SqlProjection(connection), event, clock.now())

    consumer = EventConsumer(
        bus, settings.consumer_group, dict.fromkeys(ALL_TOPICS, handle), database, tables.inbox, clock
    )
    runner.add_loop("projection", consumer.run)
    runner.on_stop(database.close)
    runner.on_stop(bus.close)
    checks = {"database": database.ping, "bus": bus.ping}
    queries = Queries(database)
    actions = Actions({"dispatcher": settings.dispatcher_url, "fhir_writer": settings.fhir_writer_url})
    runner.on_stop(actions.close)
    app = make_app(
        queries,
        ImageService(lambda: make_object_store(settings), settings.max_image_pixels),
        ChangeFeed(queries, clock),
        settings.dicom_hint,
        checks,
        runner.ready,
        runner.stop,
        actions,
    )
    return runner.run(checks, app=app)
