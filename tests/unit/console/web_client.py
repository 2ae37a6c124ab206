"""The console's web application on a database of its own, without a bus and without a network."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from fastapi.testclient import TestClient

from console.adapters.actions import Actions
from console.adapters.image_service import ImageService
from console.adapters.live import ChangeFeed
from console.adapters.projection import SqlProjection, begin_generation
from console.adapters.queries import Queries
from console.adapters.web import make_app
from console.app import MIGRATIONS
from console.handlers import project
from pipeline.clock import SystemClock
from pipeline.database import Database
from pipeline.events import Event
from pipeline.store import LocalObjectStore


class Console:
    """Feed it events, ask it by HTTP."""

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        max_pixels: int = 64_000_000,
        dicom_hint: str | None = None,
        actions: Actions | None = None,
    ) -> None:
        self.database = Database(url)
        self.database.migrate(MIGRATIONS)
        begin_generation(self.database, 1)
        self.store = LocalObjectStore(folder / "objects")
        self.queries = Queries(self.database)
        self.stop = threading.Event()
        ready = threading.Event()
        ready.set()
        self.app = make_app(
            self.queries,
            ImageService(lambda: self.store, max_pixels),
            ChangeFeed(self.queries, SystemClock(), interval_s=0.02),
            dicom_hint,
            {"database": self.database.ping},
            ready,
            self.stop,
            actions or Actions({}),
        )
        self.http = TestClient(self.app)

    def feed(self, events: Sequence[Event]) -> None:
        for event in events:
            with self.database.write() as connection:
                project(SqlProjection(connection), event, datetime.now(UTC))

    def close(self) -> None:
        self.stop.set()
        self.http.close()
        self.database.close()
