"""Kafka topics that others made, and that take less than the pipeline may write."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient

from pipeline.bus import Message
from pipeline.errors import MessageTooLarge
from pipeline.events import DEAD_LETTER_SUFFIX
from pipeline.kafka_bus import KafkaBus
from pipeline.settings import BusSettings


@pytest.fixture
def bus(kafka_bootstrap: str) -> Iterator[KafkaBus]:
    bus = KafkaBus(BusSettings(bus_url=f"kafka://{kafka_bootstrap}"))
    yield bus
    bus.close()


@pytest.fixture
def narrow_topic(kafka_bootstrap: str, kafka_prefix: str) -> str:
    """It has the broker's default of 1 MiB."""
    topic = f"{kafka_prefix}narrow"
    admin = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}})
    admin.wait_for_topics([topic])
    admin.close()
    return topic


def test_a_narrow_topic_is_warned_of_once(bus: KafkaBus, narrow_topic: str, caplog: pytest.LogCaptureFixture) -> None:
    own = narrow_topic + DEAD_LETTER_SUFFIX
    for _ in range(2):
        bus.ensure_topics([narrow_topic, own])
    [warning] = [record for record in caplog.records if "max.message.bytes" in record.message]
    assert vars(warning)["topic"] == narrow_topic


def test_an_event_that_its_topic_does_not_take_is_told_from_an_outage(bus: KafkaBus, narrow_topic: str) -> None:
    producer = bus.producer()
    small, large = (Message(narrow_topic, "key", bytes(size)) for size in (10, 2_000_000))
    with pytest.raises(MessageTooLarge, match=r"max\.message\.bytes"):
        producer.publish([small, large, small])
    producer.publish([small] * 50)
    producer.close()
