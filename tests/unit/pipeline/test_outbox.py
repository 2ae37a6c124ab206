"""The outbox: nothing lost, order kept, whatever dies in between."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta

import pytest
import sqlalchemy as sa

from pipeline.bus import Message
from pipeline.clock import ManualClock
from pipeline.errors import BusUnavailable, InvalidEvent, MessageTooLarge
from pipeline.events import STUDY_SKIPPED, Event
from pipeline.outbox import OutboxRelay
from unit.pipeline.conftest import Service, skipped


class ListProducer:
    """Keeps what is published; `failing` lets the next calls raise."""

    def __init__(self) -> None:
        self.published: list[Message] = []
        self.failing: list[Exception] = []

    def publish(self, messages: Sequence[Message]) -> None:
        if self.failing:
            raise self.failing.pop()
        self.published += messages

    def close(self) -> None:
        """Holds nothing."""

    @property
    def numbers(self) -> list[int]:
        return [Event.from_bytes(message.value).data["study_version"] for message in self.published]


@pytest.fixture
def producer() -> ListProducer:
    return ListProducer()


def add(service: Service, *numbers: int) -> None:
    with service.database.write() as connection:
        for number in numbers:
            service.outbox.add(connection, skipped(number))


def relay(service: Service, producer: ListProducer, *, batch: int = 200) -> OutboxRelay:
    return OutboxRelay(service.database, service.outbox, producer, service.clock, batch=batch)


def test_events_are_published_in_the_order_of_their_writing(service: Service, producer: ListProducer) -> None:
    add(service, 3, 1, 2)
    add(service, 5, 4)
    loop = relay(service, producer, batch=2)
    assert [loop.relay_once() for _ in range(4)] == [2, 2, 1, 0]
    assert producer.numbers == [3, 1, 2, 5, 4]
    assert {(message.topic, message.key) for message in producer.published} == {(STUDY_SKIPPED, "1.2.3")}


def test_an_event_of_a_rolled_back_transaction_is_never_published(service: Service, producer: ListProducer) -> None:
    def fail() -> None:
        with service.database.write() as connection:
            service.outbox.add(connection, skipped(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert relay(service, producer).relay_once() == 0
    assert producer.published == []


def test_an_event_that_no_broker_takes_is_refused_at_the_door(
    service: Service, producer: ListProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.outbox.MAX_EVENT_BYTES", len(skipped(1).to_bytes()) - 1)
    with pytest.raises(InvalidEvent) as refused:
        add(service, 1)
    assert refused.value.code == "too_large"
    assert relay(service, producer).relay_once() == 0


def test_a_failed_publish_leaves_the_rows(service: Service, producer: ListProducer) -> None:
    add(service, 1, 2)
    producer.failing = [BusUnavailable("away")]
    loop = relay(service, producer)
    with pytest.raises(BusUnavailable):
        loop.relay_once()
    assert loop.relay_once() == 2
    assert producer.numbers == [1, 2]


class NarrowProducer(ListProducer):
    """A topic that takes no event of a number in `too_large`; like a broker, it takes those before it in the batch."""

    def __init__(self, *too_large: int) -> None:
        super().__init__()
        self.too_large = set(too_large)

    def publish(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if Event.from_bytes(message.value).data["study_version"] in self.too_large:
                raise MessageTooLarge("larger than max.message.bytes")
            super().publish([message])


def test_an_event_that_its_topic_does_not_take_is_set_aside_and_holds_up_nothing(
    service: Service, clock: ManualClock
) -> None:
    producer = NarrowProducer(2, 5)
    add(service, 1, 2, 3, 4, 5)
    loop = relay(service, producer, batch=4)
    assert [loop.relay_once() for _ in range(3)] == [4, 1, 0]
    assert list(dict.fromkeys(producer.numbers)) == [1, 3, 4]
    clock.advance(timedelta(days=1000).total_seconds())
    loop.prune()
    kept = service.outbox.table
    assert service.values(sa.select(kept.c.id)) == [2, 5], "what was not published is not forgotten"
    # An operator lets the topic take more, and has them published.
    producer.too_large.clear()
    with service.database.write() as connection:
        connection.execute(kept.update().where(kept.c.published_at > clock.now()).values(published_at=None))
    assert loop.relay_once() == 2
    assert producer.numbers[-2:] == [2, 5]


def test_a_crash_between_publishing_and_marking_publishes_again(service: Service, producer: ListProducer) -> None:
    class Crash(BaseException):
        """The process dies here."""

    class DyingProducer(ListProducer):
        def publish(self, messages: Sequence[Message]) -> None:
            producer.publish(messages)
            raise Crash

    add(service, 1, 2)
    with pytest.raises(Crash):
        relay(service, DyingProducer()).relay_once()
    relay(service, producer).relay_once()
    assert producer.numbers == [1, 2, 1, 2]
    ids = [Event.from_bytes(message.value).id for message in producer.published]
    assert ids[:2] == ids[2:], "the same events, so that inboxes know them"


def test_published_rows_are_pruned_and_pending_ones_never(
    service: Service, producer: ListProducer, clock: ManualClock
) -> None:
    add(service, 1)
    loop = relay(service, producer)
    loop.relay_once()
    add(service, 2)
    rows = sa.select(sa.func.count()).select_from(service.outbox.table)
    loop.prune()
    assert service.values(rows) == [2]
    clock.advance(timedelta(hours=25).total_seconds())
    loop.prune()
    assert service.values(rows) == [1]
    assert loop.relay_once() == 1


def test_the_loop_waits_for_the_bus_and_goes_on(service: Service, producer: ListProducer) -> None:
    producer.failing = [BusUnavailable("away")] * 5
    stop = threading.Event()
    thread = threading.Thread(target=relay(service, producer).run, args=(stop,))
    thread.start()
    add(service, 1)
    for _ in range(6000):
        if producer.published or stop.wait(0.01):
            break
    stop.set()
    thread.join()
    assert producer.numbers == [1]
    assert not producer.failing
    assert service.clock.monotonic() >= 5 * 0.1, "it paused between the attempts"


def test_an_error_of_our_own_ends_the_loop(service: Service, producer: ListProducer) -> None:
    add(service, 1)
    producer.failing = [KeyError("bug")]
    with pytest.raises(KeyError):
        relay(service, producer).run(threading.Event())
