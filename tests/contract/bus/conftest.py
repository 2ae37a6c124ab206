"""The event bus under test: the same suite runs on every adapter."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contract.bus.harness import PARTITIONS, SESSION_S, BusUnderTest
from pipeline.bus import Bus, Consumer
from pipeline.settings import BusSettings


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgres", marks=pytest.mark.needs("postgres")),
        pytest.param("kafka", marks=pytest.mark.needs("kafka")),
    ]
)
def under_test(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BusUnderTest]:
    """An empty bus on each adapter."""
    prefix = f"t{uuid.uuid4().hex[:10]}."
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/bus.sqlite3"
    elif request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    else:
        url = f"kafka://{request.getfixturevalue('kafka_bootstrap')}"
        prefix = request.getfixturevalue("kafka_prefix")  # its topics are deleted afterwards
    settings = BusSettings(
        bus_url=url, bus_topic_prefix=prefix, bus_partitions=PARTITIONS, bus_session_timeout_s=SESSION_S
    )
    harness = BusUnderTest(request.param, settings)
    yield harness
    harness.close()


@pytest.fixture
def bus(under_test: BusUnderTest) -> Bus:
    """One bus object with the topic `events` (and its dead letters) made."""
    bus = under_test.bus()
    bus.ensure_topics(["events"])
    return bus


@pytest.fixture
def consume(bus: Bus) -> Iterator[Callable[..., Consumer]]:
    """Makes consumers that leave their group when the test ends."""
    made: list[Consumer] = []

    def make(group: str = "group", topics: tuple[str, ...] = ("events",), on: Bus | None = None) -> Consumer:
        made.append((on or bus).consumer(group, topics))
        return made[-1]

    yield make
    for consumer in made:
        consumer.close()
