"""Time and trace context are values that are passed on."""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest

from pipeline.clock import ManualClock, SystemClock, iso, parse_iso
from pipeline.tracing import child_traceparent, current_traceparent, new_traceparent, trace


def test_a_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    clock.advance(90)
    assert clock.now() == datetime(2026, 1, 1, 0, 1, 30, tzinfo=UTC)
    assert clock.monotonic() == 90
    clock.set_wall(datetime(2020, 1, 1, tzinfo=UTC))
    assert clock.monotonic() == 90


def test_waiting_ends_early_when_stopped() -> None:
    stop = threading.Event()
    assert not ManualClock().wait(stop, 3600)
    assert not SystemClock().wait(stop, -1)
    stop.set()
    manual = ManualClock()
    assert manual.wait(stop, 3600)
    assert manual.monotonic() == 0
    assert SystemClock().wait(stop, 3600), "at once: an hour is beyond the time limit of a test"


def test_times_in_events_are_utc_with_microseconds() -> None:
    moment = datetime(2026, 1, 5, 9, 0, 31, 5, tzinfo=timezone(timedelta(hours=1)))
    assert iso(moment) == "2026-01-05T08:00:31.000005Z"
    assert parse_iso(iso(moment)) == moment
    assert parse_iso("2026-01-05T09:00:31+01:00") == datetime(2026, 1, 5, 8, 0, 31, tzinfo=UTC)
    with pytest.raises(ValueError, match="isoformat"):
        parse_iso("yesterday")


def test_a_trace_is_handed_down() -> None:
    parent = new_traceparent()
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", parent)
    with trace(parent):
        child = current_traceparent()
        assert child.split("-")[1] == parent.split("-")[1]
        assert child.split("-")[2] != parent.split("-")[2]
    assert current_traceparent().split("-")[1] != parent.split("-")[1]
    assert child_traceparent(parent).split("-")[1] == parent.split("-")[1]
