"""Server-sent events: what changes is told, nothing else, and only to so many."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from console.adapters.live import ChangeFeed, Listeners, stream
from console.adapters.queries import Row
from pipeline.clock import SystemClock
from unit.console.study_events import StudyEvents
from unit.console.web_client import Console


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    running = Console(f"sqlite:///{tmp_path}/console.sqlite3", tmp_path)
    yield running
    running.close()


def feed_of(console: Console) -> ChangeFeed:
    return ChangeFeed(console.queries, SystemClock(), interval_s=0.01)


async def next_study(lines: AsyncIterator[str]) -> dict[str, object]:
    async for line in lines:
        if line.startswith("event: study"):
            found: dict[str, object] = json.loads(line.split("data: ", 1)[1])
            return found
    raise AssertionError("the stream ended")


def test_changes_are_told_as_they_happen(console: Console) -> None:
    old, new = StudyEvents(1), StudyEvents(2)
    console.feed([old.opened()])

    async def listen() -> list[dict[str, object]]:
        listeners = Listeners()
        lines = stream(feed_of(console), listeners, threading.Event())
        async for line in lines:
            if line.startswith("event: hello"):
                break
        assert listeners.count == 1
        console.feed([new.opened()])
        first = await next_study(lines)
        console.feed([old.completed()])
        second = await next_study(lines)
        await lines.aclose()
        assert listeners.count == 0
        return [first, second]

    first, second = asyncio.run(asyncio.wait_for(listen(), 120))
    expected = {"study_instance_uid": new.uid, "accession_number": new.accession, "state": "receiving", "version": 1}
    assert first == expected
    assert (second["study_instance_uid"], second["state"]) == (old.uid, "complete")


def test_a_page_opened_while_the_database_is_away_is_told_no_old_changes(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = StudyEvents(1), StudyEvents(2)
    console.feed([old.opened()])
    outages = iter([sa.exc.OperationalError("SELECT", {}, Exception("server closed the connection"))])
    really = console.queries.newest_changes

    def newest_changes(limit: int) -> list[Row]:
        for outage in outages:
            raise outage
        return really(limit)

    monkeypatch.setattr(console.queries, "newest_changes", newest_changes)

    async def listen() -> dict[str, object]:
        lines = stream(feed_of(console), Listeners(), threading.Event())
        async for line in lines:
            assert not line.startswith("event: study")
            if line.startswith("event: hello"):
                break
        console.feed([new.opened()])
        first = await next_study(lines)
        await lines.aclose()
        return first

    assert asyncio.run(asyncio.wait_for(listen(), 120))["study_instance_uid"] == new.uid


def test_the_stream_ends_when_the_service_stops(console: Console) -> None:
    stop = threading.Event()

    async def listen() -> None:
        async for line in stream(feed_of(console), Listeners(), stop):
            if line.startswith("event: hello"):
                stop.set()

    asyncio.run(asyncio.wait_for(listen(), 120))


def test_the_route_streams_and_ends_with_the_service(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    really = console.queries.newest_changes

    def newest_changes(limit: int) -> list[Row]:
        console.stop.set()  # while the page is being opened
        return really(limit)

    monkeypatch.setattr(console.queries, "newest_changes", newest_changes)
    answer = console.http.get("/api/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "event: hello" in answer.text


def test_too_many_listeners_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("console.adapters.api.Listeners", lambda: Listeners(limit=0))
    console = Console(f"sqlite:///{tmp_path}/other.sqlite3", tmp_path)
    answer = console.http.get("/api/events")
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    console.close()
