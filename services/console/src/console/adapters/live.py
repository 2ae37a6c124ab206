"""Live pages: what changed in the read model, as server-sent events.

The database is asked, not the consumer of this process, so that every replica tells of what any replica projected.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool

from console.adapters.queries import Queries
from pipeline.clock import Clock
from pipeline.database import is_transient

log = logging.getLogger(__name__)

_WINDOW = 100
_KEEP_ALIVE_S = 15.0


class ChangeFeed:
    """The newest changes, asked for at most once per interval however many pages listen."""

    def __init__(self, queries: Queries, clock: Clock, interval_s: float = 0.4) -> None:
        self.interval_s = interval_s
        self._queries = queries
        self._clock = clock
        self._lock = threading.Lock()
        self._known: Mapping[str, Mapping[str, Any]] = {}
        self._asked_at: float | None = None

    def latest(self) -> Mapping[str, Mapping[str, Any]]:
        """Study UID -> its line, for the lines written last."""
        with self._lock:
            now = self._clock.monotonic()
            if self._asked_at is None or now - self._asked_at >= self.interval_s:
                self._known = {row["study_instance_uid"]: row for row in self._queries.newest_changes(_WINDOW)}
                self._asked_at = now
            return self._known


class Listeners:
    """How many pages listen; there is a limit, because each keeps a connection open."""

    def __init__(self, limit: int = 200) -> None:
        self.limit = limit
        self.count = 0  # only touched in the event loop's thread


async def stream(feed: ChangeFeed, listeners: Listeners, stop: threading.Event) -> AsyncGenerator[str]:
    """Server-sent events: `study` for each change from now on, comments to keep the connection open."""
    listeners.count += 1
    try:
        yield "retry: 2000\n\n"
        before: Mapping[str, Mapping[str, Any]] | None = None
        quiet_s = 0.0
        while not stop.is_set():
            now = before
            try:
                now = await run_in_threadpool(feed.latest)
            except Exception as error:
                if not is_transient(error):
                    raise
                log.warning("live update waits", extra={"error": type(error).__name__})
            if before is None and now is not None:  # what stood there before the page was opened is no change
                before = now
                yield "event: hello\ndata: {}\n\n"
            changed = [row for uid, row in (now or {}).items() if (before or {}).get(uid) != row]
            before = now
            for row in reversed(changed):  # oldest first
                yield f"event: study\ndata: {_line(row)}\n\n"
            quiet_s = 0.0 if changed else quiet_s + feed.interval_s
            if quiet_s >= _KEEP_ALIVE_S:
                quiet_s = 0.0
                yield ": still here\n\n"
            await asyncio.sleep(feed.interval_s)
    finally:
        listeners.count -= 1


def _line(row: Mapping[str, Any]) -> str:
    shown = ("study_instance_uid", "accession_number", "state", "version")
    return json.dumps({name: row[name] for name in shown})
