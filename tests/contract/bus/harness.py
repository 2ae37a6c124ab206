"""Helpers of the bus contract suite: a bus under test, real consuming processes, and waiting."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.bus import Bus, Consumer, Message, Record
from pipeline.buses import make_bus
from pipeline.settings import BusSettings

PARTITIONS = 4
SESSION_S = 2.0
CHILD = Path(__file__).parent / "consuming_child.py"


@dataclass
class BusUnderTest:
    """One log of this test's own, and the clients on it."""

    kind: str
    settings: BusSettings
    _open: list[Bus] = field(default_factory=list)

    def bus(self) -> Bus:
        """A bus object of its own, as every process has one."""
        self._open.append(make_bus(self.settings))
        return self._open[-1]

    def close(self) -> None:
        for bus in self._open:
            bus.close()

    def child(self, group: str, topic: str, *, pause_s: float) -> subprocess.Popen[str]:
        """A real process that consumes, prints each value before its commit, and can be killed."""
        environment = {
            **os.environ,
            "ECHO_BUS_URL": self.settings.bus_url,
            "ECHO_BUS_TOPIC_PREFIX": self.settings.bus_topic_prefix,
            "ECHO_BUS_SESSION_TIMEOUT_S": str(self.settings.bus_session_timeout_s),
        }
        return subprocess.Popen(
            [sys.executable, str(CHILD), group, topic, str(pause_s)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )


def publish(bus: Bus, count: int, *, keys: int = 8, topic: str = "events", start: int = 0) -> list[bytes]:
    """`count` numbered messages over some keys; returns their values."""
    producer = bus.producer()
    values = [str(number).encode() for number in range(start, start + count)]
    producer.publish([Message(topic, f"key-{int(value) % keys}", value) for value in values])
    producer.close()
    return values


def drain(consumer: Consumer, count: int, *, commit: bool = False, timeout_s: float = 90.0) -> list[Record]:
    """Poll until `count` records have come."""
    found: list[Record] = []
    deadline = time.monotonic() + timeout_s
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} records after {timeout_s} s"
        for record in consumer.poll(0.2):
            found.append(record)
            if commit:
                consumer.commit(record)
    return found


def settle(*consumers: Consumer, until: Callable[[], bool], timeout_s: float = 90.0) -> list[Record]:
    """Poll all in turn until the condition holds; returns what came meanwhile."""
    found: list[Record] = []
    deadline = time.monotonic() + timeout_s
    while not until():
        assert time.monotonic() < deadline, f"assignments: {[sorted(c.assignment()) for c in consumers]}"
        for consumer in consumers:
            found.extend(consumer.poll(0.1))
    return found


def spread(*consumers: Consumer, topics: tuple[str, ...] = ("events",)) -> bool:
    """Whether the consumers own all partitions, each some, none twice."""
    owned = [consumer.assignment() for consumer in consumers]
    everything = {(topic, number) for topic in topics for number in range(PARTITIONS)}
    return all(owned) and sum(map(len, owned)) == len(everything) and frozenset().union(*owned) == everything
