"""The trap of kafka-python that the watchdog is for, provoked on a real broker."""

from __future__ import annotations

import time

import pytest

from pipeline import kafka_bus
from pipeline.bus import Message, Record
from pipeline.kafka_bus import KafkaBus
from pipeline.settings import BusSettings


@pytest.fixture
def bus(kafka_bootstrap: str) -> KafkaBus:
    settings = BusSettings(bus_url=f"kafka://{kafka_bootstrap}", bus_session_timeout_s=2, bus_partitions=2)
    return KafkaBus(settings, patience_s=2)


def test_a_consumer_that_hangs_without_partitions_is_built_anew(
    bus: KafkaBus, kafka_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without metadata before the first join, short polls lose the result of the second join."""
    topic = f"{kafka_prefix}events"
    bus.ensure_topics([topic])
    producer = bus.producer()
    producer.publish([Message(topic, "key", b"value")])
    warm_up = kafka_bus._warm_up
    monkeypatch.setattr(kafka_bus, "_warm_up", lambda *_: None)
    consumer = bus.consumer(f"{kafka_prefix}group", [topic])
    consumer.poll(0.003)
    first = consumer._client
    begun = time.monotonic()
    found: list[Record] = []
    while not found:
        assert time.monotonic() - begun < 60
        monkeypatch.setattr(kafka_bus, "_warm_up", warm_up)
        # Polls as short as these never get through a join; after the watchdog's patience longer ones do.
        found = consumer.poll(0.003 if time.monotonic() - begun < 3 else 0.5)
    assert [record.value for record in found] == [b"value"]
    assert consumer._client is not first, "the watchdog has built it anew"
    consumer.close()
    producer.close()
    bus.close()


def test_a_spare_member_is_not_rebuilt_all_the_time(bus: KafkaBus, kafka_prefix: str) -> None:
    """More members than partitions: one has none for good reason; it comes back more and more seldom."""
    topic = f"{kafka_prefix}events"
    bus.ensure_topics([topic])
    members = [bus.consumer(f"{kafka_prefix}group", [topic]) for _ in range(3)]
    seen: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    deadline = time.monotonic() + 12
    while time.monotonic() < deadline:
        for number, member in enumerate(members):
            member.poll(0.1)
            if member._client is not None:
                seen[number].add(id(member._client))
    assert sum(len(clients) for clients in seen.values()) <= 3 + 3, "2 s, then 4 s, then 8 s"
    assert sum(len(member.assignment()) for member in members) == 2
    for member in members:
        member.close()
    bus.close()
