"""A service's database with inbox and outbox, a bus in the same folder, and a clock that stands still."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipeline.clock import ManualClock
from pipeline.consume import Inbox
from pipeline.database import Database
from pipeline.events import STUDY_SKIPPED, Event, study_event
from pipeline.outbox import Outbox
from pipeline.sql_bus import SqlBus


class Service:
    """What a service has, on SQLite."""

    def __init__(self, folder: Path, clock: ManualClock) -> None:
        self.clock = clock
        self.database = Database(f"sqlite:///{folder}/service.sqlite3")
        self.bus = SqlBus(f"sqlite:///{folder}/bus.sqlite3", partitions=2, clock=clock)
        metadata = sa.MetaData()
        self.inbox = Inbox(metadata)
        self.outbox = Outbox(metadata)
        self.effects = sa.Table("effects", metadata, sa.Column("number", sa.Integer))
        metadata.create_all(self.database.engine)

    def close(self) -> None:
        self.database.close()
        self.bus.close()

    def values(self, query: sa.Select[int]) -> list[int]:
        with self.database.read() as connection:
            return list(connection.scalars(query))


def skipped(number: int, study: str = "1.2.3") -> Event:
    """A small event; `number` tells one from another."""
    reason = {"code": "no_frontal_view", "text": "No frontal view."}
    return study_event(STUDY_SKIPPED, "/test", study, number, datetime(2026, 1, 1, tzinfo=UTC), {"reason": reason})


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def service(tmp_path: Path, clock: ManualClock) -> Iterator[Service]:
    service = Service(tmp_path, clock)
    yield service
    service.close()
