"""A bus that cannot be reached: a clear error, and everything goes on when it is back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from contract.bus.forwarder import Forwarder
from contract.bus.harness import BusUnderTest, drain
from pipeline.bus import Bus, Message
from pipeline.buses import make_bus
from pipeline.errors import BusUnavailable


@dataclass
class Outage:
    """A bus whose server is away until `end` is called."""

    bus: Bus
    forwarder: Forwarder | None
    folder: Path

    def end(self) -> None:
        self.folder.mkdir(exist_ok=True)
        if self.forwarder is not None:
            self.forwarder.up()


@pytest.fixture
def outage(under_test: BusUnderTest, tmp_path: Path) -> Iterator[Outage]:
    url, folder, forwarder = under_test.settings.bus_url, tmp_path / "later", None
    if under_test.kind == "sqlite":
        url = f"sqlite:///{folder}/bus.sqlite3"
    elif under_test.kind == "postgres":
        parsed = sa.make_url(url)
        forwarder = Forwarder((str(parsed.host), parsed.port or 5432))
        url = parsed.set(host="127.0.0.1", port=forwarder.port).render_as_string(hide_password=False)
    else:
        host, _, port = url.removeprefix("kafka://").rpartition(":")
        forwarder = Forwarder((host, int(port)))
        url = f"kafka://127.0.0.1:{forwarder.port}"
    bus = make_bus(under_test.settings.model_copy(update={"bus_url": url}))
    yield Outage(bus, forwarder, folder)
    bus.close()
    if forwarder is not None:
        forwarder.down()


def test_unreachable_is_said_and_recovered_from(outage: Outage) -> None:
    bus = outage.bus
    producer = bus.producer()
    message = Message("events", "key", b"value")
    for attempt in (bus.ping, lambda: bus.ensure_topics(["events"]), lambda: producer.publish([message])):
        with pytest.raises(BusUnavailable) as caught:
            attempt()
        assert str(caught.value), "the text says what to look for"
    with pytest.raises(BusUnavailable):
        bus.consumer("group", ["events"]).poll(0.1)
    outage.end()
    bus.ping()
    bus.ensure_topics(["events"])
    producer.publish([message])
    consumer = bus.consumer("group", ["events"])
    assert [record.value for record in drain(consumer, 1)] == [b"value"]
    consumer.close()
    producer.close()


@pytest.mark.parametrize("under_test", [pytest.param("postgres", marks=pytest.mark.needs("postgres"))], indirect=True)
def test_cut_connections_are_made_anew(outage: Outage) -> None:
    """Not for Kafka, whose clients follow the advertised address past the forwarder; nor for a file."""
    outage.end()
    assert outage.forwarder is not None
    bus = outage.bus
    bus.ensure_topics(["events"])
    producer, consumer = bus.producer(), bus.consumer("group", ["events"])
    producer.publish([Message("events", "key", b"1")])
    drain(consumer, 1, commit=True)
    outage.forwarder.down()
    with pytest.raises(BusUnavailable):
        producer.publish([Message("events", "key", b"2")])
    with pytest.raises(BusUnavailable):
        consumer.poll(0.5)
    outage.forwarder.up()
    producer.publish([Message("events", "key", b"2")])
    assert [record.value for record in drain(consumer, 1)] == [b"2"]
    consumer.close()
