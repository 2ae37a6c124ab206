"""The trap of kafka-python that the watchdog is for, provoked on a real broker."""

from __future__ import annotations

import itertools
import time

import pytest

from pipeline import kafka_bus
from pipeline.bus import Message, Record
from pipeline.kafka_bus import KafkaBus
from pipeline.settings import BusSettings

# The pauses between attempts double: on a busy machine the last ones, which are long enough, take minutes.
pytestmark = pytest.mark.timeout(900)
PATIENCE_S, LIMIT_S = 2.0, 600.0


@pytest.fixture
def bus(kafka_bootstrap: str) -> KafkaBus:
    settings = BusSettings(bus_url=f"kafka://{kafka_bootstrap}", bus_session_timeout_s=2, bus_partitions=2)
    return KafkaBus(settings, patience_s=PATIENCE_S)


def test_a_consumer_that_hangs_without_partitions_is_built_anew(
    bus: KafkaBus, kafka_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without metadata before the first join, short polls lose the result of the second join."""
    topic = f"{kafka_prefix}events"
    bus.ensure_topics([topic])
    producer = bus.producer()
    producer.publish([Message(topic, "key", b"value")])
    producer.close()
    deadline = time.monotonic() + LIMIT_S
    for attempt in itertools.count():
        assert time.monotonic() < deadline, "no consumer could be made to hang"
        consumer = bus.consumer(f"{kafka_prefix}group-{attempt}", [topic])
        with monkeypatch.context() as unprepared:
            unprepared.setattr(kafka_bus, "_warm_up", lambda *_: None)
            consumer.poll(0.003)
        first, begun = consumer._client, time.monotonic()
        found: list[Record] = []
        while not found:
            assert time.monotonic() < deadline, "a consumer that hangs was never built anew"
            # Polls as short as these seldom get through a join; after the watchdog's patience longer ones do.
            found = consumer.poll(0.003 if time.monotonic() - begun < PATIENCE_S + 1 else 0.5)
        rebuilt = consumer._client is not first
        consumer.close()
        assert [record.value for record in found] == [b"value"]
        if rebuilt:
            break
    bus.close()


def test_a_spare_member_is_not_rebuilt_all_the_time(bus: KafkaBus, kafka_prefix: str) -> None:
    """More members than partitions: one has none for good reason; each time it waits longer before it joins anew."""
    topic = f"{kafka_prefix}events"
    bus.ensure_topics([topic])
    members = [bus.consumer(f"{kafka_prefix}group", [topic]) for _ in range(3)]
    # When each member was built anew: not before the one and not after the other moment.
    rebuilt: list[list[tuple[float, float]]] = [[], [], []]
    deadline = time.monotonic() + LIMIT_S

    def poll_all() -> None:
        assert time.monotonic() < deadline, [sorted(member.assignment()) for member in members]
        for member, moments in zip(members, rebuilt, strict=True):
            before, had = time.monotonic(), member._client
            member.poll(0.1)
            if had is not None and member._client is None:
                moments.append((before, time.monotonic()))

    while max(map(len, rebuilt)) < 2:
        poll_all()
    for moments in rebuilt:
        for number, ((earliest, _), (_, latest)) in enumerate(itertools.pairwise(moments), start=1):
            assert latest - earliest >= PATIENCE_S * 2**number
    # In a rebalance a member keeps what it had until it hears of it: only what things come to counts.
    while sorted(place for member in members for place in member.assignment()) != [(topic, 0), (topic, 1)]:
        poll_all()
    for member in members:
        member.close()
    bus.close()
