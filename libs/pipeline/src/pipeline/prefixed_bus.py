"""Several systems on one broker: a prefix before every topic and group name, unseen by the services."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.bus import Bus, Consumer, Message, Producer, Record


class PrefixedBus:
    """A `Bus` whose topics and groups carry a prefix on the bus below."""

    def __init__(self, bus: Bus, prefix: str) -> None:
        self._bus = bus
        self._prefix = prefix

    def _with(self, topics: Sequence[str]) -> list[str]:
        return [self._prefix + topic for topic in topics]

    def ensure_topics(self, topics: Sequence[str]) -> None:
        """Create what is missing."""
        self._bus.ensure_topics(self._with(topics))

    def producer(self) -> Producer:
        """A producer."""
        return _PrefixedProducer(self._bus.producer(), self._prefix)

    def consumer(self, group: str, topics: Sequence[str]) -> Consumer:
        """A group member."""
        return _PrefixedConsumer(self._bus.consumer(self._prefix + group, self._with(topics)), self._prefix)

    def lag(self, group: str, topics: Sequence[str]) -> int:
        """Records not committed."""
        return self._bus.lag(self._prefix + group, self._with(topics))

    def ping(self) -> None:
        """Raise unless the bus answers."""
        self._bus.ping()

    def close(self) -> None:
        """Close the bus below."""
        self._bus.close()


class _PrefixedProducer:
    def __init__(self, producer: Producer, prefix: str) -> None:
        self._producer = producer
        self._prefix = prefix

    def publish(self, messages: Sequence[Message]) -> None:
        self._producer.publish([replace(message, topic=self._prefix + message.topic) for message in messages])

    def close(self) -> None:
        self._producer.close()


class _PrefixedConsumer:
    def __init__(self, consumer: Consumer, prefix: str) -> None:
        self._consumer = consumer
        self._prefix = prefix

    def _bare(self, topic: str) -> str:
        return topic.removeprefix(self._prefix)

    def _full(self, record: Record) -> Record:
        return replace(record, topic=self._prefix + record.topic)

    def poll(self, timeout_s: float) -> list[Record]:
        return [replace(record, topic=self._bare(record.topic)) for record in self._consumer.poll(timeout_s)]

    def commit(self, record: Record) -> None:
        self._consumer.commit(self._full(record))

    def rewind(self, record: Record) -> None:
        self._consumer.rewind(self._full(record))

    def assignment(self) -> frozenset[tuple[str, int]]:
        return frozenset((self._bare(topic), partition) for topic, partition in self._consumer.assignment())

    def close(self) -> None:
        self._consumer.close()
