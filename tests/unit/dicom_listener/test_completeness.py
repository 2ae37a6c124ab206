"""The three rules, and the clocks that measure them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dicom_listener.domain.completeness import (
    CompletionReason,
    OpenStudy,
    Rules,
    Stopwatches,
    Waited,
    complete_because,
)
from pipeline.clock import ManualClock

RULES = Rules(quiet_seconds=30, release_seconds=5, maximum_age_seconds=600)
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("waited", "reason"),
    [
        (Waited(29.9, None, 29.9), None),
        (Waited(30.0, None, 30.0), CompletionReason.QUIET_PERIOD),
        (Waited(4.9, 4.9, 10.0), None),
        (Waited(6.0, 5.0, 10.0), CompletionReason.ASSOCIATION_RELEASED),
        (Waited(0.1, None, 600.0), CompletionReason.MAXIMUM_AGE),
        (Waited(0.1, 0.1, 599.9), None),
    ],
)
def test_rules(waited: Waited, reason: CompletionReason | None) -> None:
    assert complete_because(RULES, waited) is reason


def test_release_never_lengthens_the_wait() -> None:
    rules = Rules(quiet_seconds=2, release_seconds=5, maximum_age_seconds=600)
    assert complete_because(rules, Waited(2.0, 2.0, 2.0)) is CompletionReason.ASSOCIATION_RELEASED
    assert complete_because(rules, Waited(1.9, 1.9, 1.9)) is None


def study(**changes: object) -> OpenStudy:
    values: dict[str, object] = {
        "study_instance_uid": "1.2.3",
        "version": 1,
        "opened_at": START,
        "last_received_at": START,
        "released_at": None,
        "instance_count": 1,
    }
    return OpenStudy(**(values | changes))  # type: ignore[arg-type]  # a test's shorthand


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock(START)
        self.watches = Stopwatches()

    def reason(self, row: OpenStudy, *, carried: bool = False) -> CompletionReason | None:
        waited = self.watches.waited(row, self.clock.now(), self.clock.monotonic(), carried=carried)
        return complete_because(RULES, waited)


def test_quiet_period_counts_from_the_last_object() -> None:
    bench = Bench()
    assert bench.reason(study()) is None
    bench.clock.advance(29)
    later = study(last_received_at=bench.clock.now(), instance_count=2)
    bench.clock.advance(29)
    assert bench.reason(later) is None
    bench.clock.advance(1)
    assert bench.reason(later) is CompletionReason.QUIET_PERIOD


def test_a_new_process_knows_from_the_row_how_long_it_was_quiet() -> None:
    bench = Bench()
    bench.clock.advance(31)
    assert bench.reason(study()) is CompletionReason.QUIET_PERIOD


def test_released_study_waits_while_another_association_carries_it() -> None:
    bench = Bench()
    released = study(released_at=START)
    bench.clock.advance(6)
    assert bench.reason(released, carried=True) is None
    assert bench.reason(released) is CompletionReason.ASSOCIATION_RELEASED


def test_wall_clock_set_back_delays_nothing_beyond_one_period() -> None:
    bench = Bench()
    assert bench.reason(study()) is None
    bench.clock.set_wall(START - timedelta(days=1))
    bench.clock.advance(29)
    assert bench.reason(study()) is None
    bench.clock.advance(1)
    assert bench.reason(study()) is CompletionReason.QUIET_PERIOD


def test_wall_clock_set_forward_closes_nothing_early() -> None:
    bench = Bench()
    assert bench.reason(study()) is None
    bench.clock.set_wall(START + timedelta(days=1))
    bench.clock.advance(29)
    assert bench.reason(study()) is None
    bench.clock.advance(1)
    assert bench.reason(study()) is CompletionReason.QUIET_PERIOD


def test_clock_set_back_before_this_process_started() -> None:
    bench = Bench()
    future = study(opened_at=START + timedelta(hours=1), last_received_at=START + timedelta(hours=1))
    assert bench.reason(future) is None
    bench.clock.advance(30)
    assert bench.reason(future) is CompletionReason.QUIET_PERIOD


def test_maximum_age_ends_a_study_that_never_gets_quiet() -> None:
    bench = Bench()
    row = study()
    for count in range(2, 70):
        assert bench.reason(row) is None
        bench.clock.advance(9)
        row = study(last_received_at=bench.clock.now(), instance_count=count)
        if bench.clock.monotonic() >= 600:
            break
    assert bench.reason(row) is CompletionReason.MAXIMUM_AGE


def test_forgets_closed_studies() -> None:
    bench = Bench()
    bench.reason(study())
    bench.watches.keep_only(set())
    bench.clock.set_wall(START - timedelta(days=1))
    bench.clock.advance(29)
    assert bench.reason(study()) is None  # seen anew: the earlier 29 s are forgotten, too
