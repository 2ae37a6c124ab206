"""What only the embedded log has: sessions by the clock, retention, one division for all members, an idle cost."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from pipeline import sql_bus, sql_group
from pipeline.bus import Message
from pipeline.clock import ManualClock
from pipeline.errors import BusUnavailable
from pipeline.sql_bus import SqlBus, partition_of
from pipeline.sql_group import divide


@pytest.fixture
def bus(tmp_path: Path, clock: ManualClock) -> Iterator[SqlBus]:
    bus = SqlBus(f"sqlite:///{tmp_path}/bus.sqlite3", partitions=2, clock=clock, session_timeout_s=1)
    bus.ensure_topics(["a"])
    yield bus
    bus.close()


def publish(bus: SqlBus, *values: bytes, topic: str = "a") -> None:
    bus.producer().publish([Message(topic, "key", value) for value in values])


def test_partitions_of_keys_never_change() -> None:
    assert [partition_of(key, 6) for key in ("", "1.2.3", "é")] == [0, 2, 2]


def test_everybody_computes_the_same_fair_division() -> None:
    places = [(topic, number) for topic in "abc" for number in range(6)]
    subscriptions = {"one": ["a", "b", "c"], "two": ["c", "b", "a"], "three": ["a"]}
    division = divide(places, subscriptions)
    assert division == divide(places[::-1], dict(reversed(subscriptions.items())))
    assert set(division) == set(places)
    assert all(division[place] != "three" for place in places if place[0] != "a")
    assert sorted([*division.values()].count(member) for member in subscriptions) == [2, 8, 8]
    assert divide(places, {}) == {}
    assert len(set(divide([(t, 0) for t in "abcdef"], {"one": list("abcdef"), "two": list("abcdef")}).values())) == 2


def test_a_silent_member_loses_its_partitions_and_may_not_commit(bus: SqlBus, clock: ManualClock) -> None:
    publish(bus, b"1", b"2")
    silent = bus.consumer("group", ["a"])
    first, _ = silent.poll(1)
    silent._member._leaving.set()  # its heartbeats end here, as those of a process that was stopped
    assert silent._member._beat is not None
    silent._member._beat.join()
    clock.advance(1.5)
    heir = bus.consumer("group", ["a"])
    assert [record.value for record in heir.poll(1)] == [b"1", b"2"]
    silent.commit(first)
    assert bus.lag("group", ["a"]) == 2
    heir.commit(first)
    assert bus.lag("group", ["a"]) == 1
    silent.close()
    heir.close()


def test_old_records_go_when_every_group_has_them(bus: SqlBus, clock: ManualClock) -> None:
    publish(bus, b"1", b"2")
    publish(bus, b"never read", topic="dead")
    readers = [bus.consumer(group, ["a"]) for group in ("fast", "slow")]
    records = [reader.poll(1) for reader in readers]
    readers[0].commit(records[0][1])
    readers[1].commit(records[1][0])
    assert bus.prune() == 0, "nothing is old yet"
    clock.advance(timedelta(days=15).total_seconds())
    publish(bus, b"3")
    assert bus.prune() == 1, "the slow group still needs the second"
    late = bus.consumer("late", ["a", "dead"])
    assert {record.value for record in late.poll(1)} == {b"2", b"3", b"never read"}
    for reader in (*readers, late):
        reader.close()


def test_a_broken_file_is_an_unavailable_bus(tmp_path: Path) -> None:
    (tmp_path / "bus.sqlite3").mkdir()
    bus = SqlBus(f"sqlite:///{tmp_path}/bus.sqlite3")
    with pytest.raises(BusUnavailable, match="OperationalError"):
        bus.ping()
    bus.close()


def test_a_full_disk_is_an_unavailable_bus_and_leaves_no_half_batch(bus: SqlBus) -> None:
    publish(bus, b"before")
    pages = 60

    @sa.event.listens_for(bus._log.engine, "checkout")
    def _limit(connection: sa.engine.interfaces.DBAPIConnection, *_: object) -> None:
        connection.cursor().execute(f"PRAGMA max_page_count={pages}")

    with pytest.raises(BusUnavailable):
        publish(bus, *[bytes(4096)] * 100)
    pages = 100_000
    publish(bus, b"after")
    consumer = bus.consumer("group", ["a"])
    found = [(record.offset, record.value) for record in consumer.poll(1)]
    consumer.close()
    assert found == [(0, b"before"), (1, b"after")]


def test_an_idle_consumer_asks_next_to_nothing(bus: SqlBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements are counted while the clock is moved by sleeping alone: what else the machine does changes nothing."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    for module in (sql_bus, sql_group):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    consumer = bus.consumer("group", ["a"])
    consumer.poll(0.3)
    through_sqlalchemy: list[str] = []

    @sa.event.listens_for(bus._groups.engine, "before_cursor_execute")
    def _count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        through_sqlalchemy.append(statement)

    probes = 0
    real = consumer._probe._value

    def counted() -> object:
        nonlocal probes
        probes += 1
        return real()

    consumer._probe._value = counted  # type: ignore[method-assign]  # counts, and asks as before
    assert consumer.poll(1.0) == []
    consumer.close()
    assert 10 <= probes <= 25, "every 50 ms: quick enough for people, cheap enough for laptops"
    looks = [statement for statement in through_sqlalchemy if statement.startswith("SELECT")]
    assert len(looks) <= 4 * 4, "group and partitions are looked at with the heartbeat, four times a session of 1 s"
