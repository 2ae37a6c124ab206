"""The loop between bus and handlers on every adapter: each effect once, and no event blocks those behind it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from contract.bus.harness import BusUnderTest, drain, settle, spread
from pipeline.bus import Bus, Message
from pipeline.clock import SystemClock
from pipeline.consume import EventConsumer, Handler, Inbox
from pipeline.database import Database
from pipeline.errors import TransientError
from pipeline.events import DEAD_LETTER, STUDY_SKIPPED, Event, dead_letter_topic, study_event

DLQ = dead_letter_topic(STUDY_SKIPPED)


class Ledger:
    """A service's database with an inbox and a table of effects."""

    def __init__(self, path: Path) -> None:
        self.database = Database(f"sqlite:///{path}")
        metadata = sa.MetaData()
        self.inbox = Inbox(metadata)
        self.effects = sa.Table("effects", metadata, sa.Column("number", sa.Integer))
        metadata.create_all(self.database.engine)

    def enter(self, connection: Connection, event: Event) -> None:
        connection.execute(self.effects.insert().values(number=event.data["study_version"]))

    def numbers(self) -> list[int]:
        with self.database.read() as connection:
            return sorted(connection.scalars(sa.select(self.effects.c.number)))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "service.sqlite3")
    yield ledger
    ledger.database.close()


@pytest.fixture
def bus(under_test: BusUnderTest) -> Bus:
    bus = under_test.bus()
    bus.ensure_topics([STUDY_SKIPPED, DLQ])
    return bus


def skipped(number: int, study: str = "1.2.3") -> Event:
    reason = {"code": "no_frontal_view", "text": "No frontal view."}
    return study_event(STUDY_SKIPPED, "/test", study, number, datetime(2026, 1, 5, tzinfo=UTC), {"reason": reason})


def publish(bus: Bus, *payloads: Event | bytes, topic: str = STUDY_SKIPPED) -> None:
    """All under one key, so that each stands behind the one before."""
    values = [payload.to_bytes() if isinstance(payload, Event) else payload for payload in payloads]
    producer = bus.producer()
    producer.publish([Message(topic, "1.2.3", value) for value in values])
    producer.close()


def run_until_done(bus: Bus, ledger: Ledger, handler: Handler) -> None:
    """Handle until the group has committed everything."""
    consumer = EventConsumer(
        bus, "group", {STUDY_SKIPPED: handler}, ledger.database, ledger.inbox, SystemClock(), backoff_s=0.001
    )
    step_until_empty(consumer, bus, "group", STUDY_SKIPPED)


def step_until_empty(consumer: EventConsumer, bus: Bus, group: str, topic: str) -> None:
    stop = threading.Event()
    deadline = time.monotonic() + 90
    while bus.lag(group, [topic]):
        assert time.monotonic() < deadline, f"{bus.lag(group, [topic])} events are left"
        with contextlib.suppress(TransientError):
            consumer.step(stop, timeout_s=0.2)
    consumer.close()


def letters(bus: Bus, count: int) -> list[Event]:
    reader = bus.consumer("reader", [DLQ])
    found = [Event.from_bytes(record.value) for record in drain(reader, count)]
    reader.close()
    return found


def test_an_event_delivered_twice_has_its_effect_once(bus: Bus, ledger: Ledger) -> None:
    one, two = skipped(1), skipped(2)
    publish(bus, one, one, two)
    publish(bus, one)
    run_until_done(bus, ledger, ledger.enter)
    assert ledger.numbers() == [1, 2]


def test_poison_goes_to_the_dead_letters_and_blocks_nothing(bus: Bus, ledger: Ledger) -> None:
    def handler(connection: Connection, event: Event) -> None:
        ledger.enter(connection, event)
        if event.data["study_version"] == 2:
            raise RuntimeError("Doe^John cannot be handled")

    poison = skipped(2)
    publish(bus, skipped(1), poison, b"\xff not JSON", b"[1]", skipped(3))
    run_until_done(bus, ledger, handler)
    assert ledger.numbers() == [1, 3], "what the failing handler wrote was rolled back"
    found = letters(bus, 3)
    assert [letter.data["error_code"] for letter in found] == ["handler_failed", "not_json", "not_cloudevents"]
    assert [letter.data["attempts"] for letter in found] == [5, 1, 1]
    assert all(letter.type == DEAD_LETTER and letter.data["consumer"] == "group" for letter in found)
    assert all(letter.data["topic"] == STUDY_SKIPPED for letter in found)
    assert "Doe" not in str([letter.data["error_message"] for letter in found])


def test_a_world_that_is_not_ready_is_waited_for(bus: Bus, ledger: Ledger) -> None:
    refusals = iter(range(7))  # more than the attempts that a failing handler has

    def handler(connection: Connection, event: Event) -> None:
        if event.data["study_version"] == 2 and next(refusals, None) is not None:
            raise TransientError("the other side is away")
        ledger.enter(connection, event)

    publish(bus, skipped(1), skipped(2), skipped(3))
    run_until_done(bus, ledger, handler)
    assert ledger.numbers() == [1, 2, 3]
    assert bus.lag("reader", [DLQ]) == 0


def test_dead_letters_can_be_consumed_like_events(bus: Bus, ledger: Ledger) -> None:
    publish(bus, b"no event")
    run_until_done(bus, ledger, ledger.enter)
    publish(bus, b"no letter either", topic=DLQ)
    seen: list[str] = []
    consumer = EventConsumer(
        bus,
        "reader",
        {DLQ: lambda _connection, event: seen.append(event.data["error_code"])},
        ledger.database,
        ledger.inbox,
        SystemClock(),
    )
    step_until_empty(consumer, bus, "reader", DLQ)
    assert seen == ["not_json"]
    assert bus.lag("reader", [DLQ]) == 0, "what cannot be read from the dead letters is passed over"


def test_two_services_on_one_group_handle_each_event_once(under_test: BusUnderTest, bus: Bus, ledger: Ledger) -> None:
    buses = (bus, under_test.bus())
    members = [one.consumer("group", [STUDY_SKIPPED]) for one in buses]
    settle(*members, until=lambda: spread(*members, topics=(STUDY_SKIPPED,)))
    for member in members:
        member.close()
    producer = bus.producer()
    producer.publish([Message(STUDY_SKIPPED, f"1.2.{n}", skipped(n + 1, f"1.2.{n}").to_bytes()) for n in range(40)])
    producer.close()
    stop = threading.Event()
    threads = []
    for one in buses:
        consumer = EventConsumer(
            one, "group", {STUDY_SKIPPED: ledger.enter}, ledger.database, ledger.inbox, SystemClock()
        )
        threads.append(threading.Thread(target=consumer.run, args=(stop,)))
        threads[-1].start()
    for _ in range(900):
        if bus.lag("group", [STUDY_SKIPPED]) == 0 or stop.wait(0.1):
            break
    stop.set()
    for thread in threads:
        thread.join(timeout=90)
    assert ledger.numbers() == list(range(1, 41))
