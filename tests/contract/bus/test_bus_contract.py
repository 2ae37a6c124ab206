"""What the services rely on, on every adapter of the event bus."""

from __future__ import annotations

import signal
import time
from collections import defaultdict
from collections.abc import Callable

from contract.bus.harness import PARTITIONS, BusUnderTest, drain, publish, settle, spread
from pipeline.bus import Bus, Consumer, Message, Record

Consume = Callable[..., Consumer]


def numbers(records: list[Record]) -> list[int]:
    return [int(record.value) for record in records]


def test_messages_arrive_as_they_were_sent(bus: Bus, consume: Consume) -> None:
    producer = bus.producer()
    value = bytes(range(256))
    producer.publish([Message("events", "Schlüssel", value, {"name": "Wert ✓"})])
    producer.publish([])
    [record] = drain(consume(), 1)
    assert (record.topic, record.key, record.value, record.headers) == (
        "events",
        "Schlüssel",
        value,
        {"name": "Wert ✓"},
    )


def test_a_key_keeps_its_order(bus: Bus, consume: Consume) -> None:
    for start in range(0, 300, 50):
        publish(bus, 50, keys=11, start=start)
    records = drain(consume(), 300)
    of_key: dict[str, list[int]] = defaultdict(list)
    for record in records:
        of_key[record.key].append(int(record.value))
    assert len(of_key) == 11
    assert all(values == sorted(values) for values in of_key.values())
    assert len({(record.partition, record.key) for record in records}) == 11, "a key lives in one partition"


def test_offsets_have_no_gaps(bus: Bus, consume: Consume) -> None:
    publish(bus, 60)
    publish(bus, 60, start=60)
    of_partition: dict[int, list[int]] = defaultdict(list)
    for record in drain(consume(), 120):
        of_partition[record.partition].append(record.offset)
    assert all(offsets == list(range(len(offsets))) for offsets in of_partition.values())


def test_what_is_not_committed_comes_again(bus: Bus, consume: Consume) -> None:
    publish(bus, 40)
    first = consume()
    assert len(drain(first, 40)) == 40
    first.close()
    assert sorted(numbers(drain(consume(), 40))) == list(range(40))


def test_commits_survive_a_restart(under_test: BusUnderTest, bus: Bus, consume: Consume) -> None:
    publish(bus, 20, keys=1)
    first = consume()
    records = drain(first, 20)
    for record in records[:7]:
        first.commit(record)
    first.close()
    assert numbers(drain(consume(on=under_test.bus()), 13)) == list(range(7, 20))


def test_groups_do_not_disturb_each_other(bus: Bus, consume: Consume) -> None:
    publish(bus, 10)
    drain(consume("one"), 10, commit=True)
    assert len(drain(consume("two"), 10)) == 10


def test_lag_counts_what_is_not_committed(bus: Bus, consume: Consume) -> None:
    assert bus.lag("group", ["events"]) == 0
    publish(bus, 10)
    assert bus.lag("group", ["events"]) == 10
    drain(consume(), 10, commit=True)
    publish(bus, 3, start=10)
    assert bus.lag("group", ["events"]) == 3


def test_topics_that_exist_stay_as_they_are(under_test: BusUnderTest, bus: Bus, consume: Consume) -> None:
    publish(bus, 5)
    other = under_test.bus()
    other.ensure_topics(["events", "more", "more"])
    publish(other, 5, topic="more")
    consumer = consume(topics=("events", "more"))
    assert len(drain(consumer, 10)) == 10
    assert len(consumer.assignment()) == 2 * PARTITIONS


def test_rewound_records_come_again(bus: Bus, consume: Consume) -> None:
    publish(bus, 10, keys=1)
    consumer = consume()
    records = drain(consumer, 10)
    for record in reversed(records[4:]):
        consumer.rewind(record)
    assert numbers(drain(consumer, 6)) == list(range(4, 10))


def test_two_consumers_share_the_partitions(under_test: BusUnderTest, bus: Bus, consume: Consume) -> None:
    one, two = consume(), consume(on=under_test.bus())
    early = settle(one, two, until=lambda: spread(one, two))
    assert not early
    publish(bus, 60, keys=40)
    records: list[Record] = []
    deadline = time.monotonic() + 90
    while len(records) < 60 and time.monotonic() < deadline:
        for consumer in (one, two):
            for record in consumer.poll(0.1):
                assert (record.topic, record.partition) in consumer.assignment()
                records.append(record)
    assert sorted(numbers(records)) == list(range(60)), "each record went to one of them, once"


def test_a_member_that_leaves_hands_over_at_once(under_test: BusUnderTest, bus: Bus, consume: Consume) -> None:
    # A session longer than the test waits: only the goodbye itself can hand the partitions over.
    under_test.settings = under_test.settings.model_copy(update={"bus_session_timeout_s": 36.0})
    one, two = consume(on=under_test.bus()), consume(on=under_test.bus())
    settle(one, two, until=lambda: spread(one, two))
    one.close()
    settle(two, until=lambda: spread(two), timeout_s=35)


def test_a_commit_for_a_lost_partition_changes_nothing(under_test: BusUnderTest, bus: Bus, consume: Consume) -> None:
    publish(bus, 60, keys=40)
    one = consume()
    records = drain(one, 60)
    two = consume(on=under_test.bus())
    settle(one, two, until=lambda: spread(one, two))
    lost = [record for record in records if (record.topic, record.partition) in two.assignment()]
    assert lost
    for record in lost:
        one.commit(record)
    assert bus.lag("group", ["events"]) == 60


def test_a_killed_consumer_loses_nothing_and_its_partitions_move(
    under_test: BusUnderTest, bus: Bus, consume: Consume
) -> None:
    publish(bus, 100)
    child = under_test.child("group", "events", pause_s=0.01)
    assert child.stdout is not None
    seen = [int(child.stdout.readline()) for _ in range(20)]
    survivor = consume()
    rest = [record for _ in range(4) for record in survivor.poll(0.1)]
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=10)
    seen += [int(line) for line in child.stdout.read().split()]
    child.stdout.close()
    rest += settle(survivor, until=lambda: spread(survivor))
    deadline = time.monotonic() + 90
    while set(seen) | set(numbers(rest)) != set(range(100)):
        assert time.monotonic() < deadline, "nothing is lost"
        rest += survivor.poll(0.2)
    twice = set(seen) & set(numbers(rest))
    assert len(twice) <= 2 * PARTITIONS, "only what was not committed comes again"


def test_a_consumer_with_an_empty_assignment_is_revived(under_test: BusUnderTest, bus: Bus, consume: Consume) -> None:
    early = consume(topics=("later",))
    assert early.poll(0.3) == []
    assert early.assignment() == frozenset()
    bus.ensure_topics(["later"])
    publish(bus, 5, topic="later")
    settle(early, until=lambda: spread(early, topics=("later",)))
