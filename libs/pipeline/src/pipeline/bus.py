"""The event bus port: an append-only, partitioned log with consumer groups. Adapters: `kafka_bus`, `sql_bus`.

Guarantees that both adapters prove in one contract suite: order within a key; at-least-once; committed offsets
survive a restart and SIGKILL; members of a group share the partitions; a member without an assignment is revived.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Message:
    """What a producer hands over."""

    topic: str
    key: str
    value: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What a consumer gets: a message at its place in the log."""

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Producer(Protocol):
    """Appends messages."""

    def publish(self, messages: Sequence[Message]) -> None:
        """Append all, in order per key; returns when every one is durable, else raises `BusUnavailable`, or
        `MessageTooLarge` when one of them is larger than its topic allows.

        After an error some of the messages may be in the log all the same: publish again, consumers see duplicates.
        """
        ...

    def close(self) -> None:
        """Release connections and threads."""
        ...


class Consumer(Protocol):
    """One member of a consumer group. Not thread-safe: one thread owns it."""

    def poll(self, timeout_s: float) -> list[Record]:
        """Up to a batch of records after the last polled position; empty on time-out.

        Also heartbeats, joins and re-joins. Raises `BusUnavailable` when the log cannot be reached.
        """
        ...

    def commit(self, record: Record) -> None:
        """Make `record.offset + 1` the position from which the group goes on in that partition.

        A member that has lost the partition in the meantime changes nothing (its successor will see the record again).
        """
        ...

    def rewind(self, record: Record) -> None:
        """Poll this record and those behind it in its partition again."""
        ...

    def assignment(self) -> frozenset[tuple[str, int]]:
        """The (topic, partition) pairs this member owns now."""
        ...

    def close(self) -> None:
        """Leave the group, so that the others take over at once."""
        ...


class Bus(Protocol):
    """Makes producers and consumers."""

    def ensure_topics(self, topics: Sequence[str]) -> None:
        """Create what is missing, with the configured number of partitions; existing topics stay as they are."""
        ...

    def producer(self) -> Producer:
        """A new producer; thread-safe."""
        ...

    def consumer(self, group: str, topics: Sequence[str]) -> Consumer:
        """A new member of `group`; a group without offsets starts at the oldest record."""
        ...

    def lag(self, group: str, topics: Sequence[str]) -> int:
        """Records appended but not committed by the group."""
        ...

    def ping(self) -> None:
        """Raise `BusUnavailable` unless the log answers now."""
        ...

    def close(self) -> None:
        """Release what the bus itself holds."""
        ...
