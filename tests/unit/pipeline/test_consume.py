"""The consume loop with a clock that only moves when it is waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from pipeline.bus import Consumer, Message, Record
from pipeline.clock import ManualClock
from pipeline.consume import EventConsumer, Handler
from pipeline.database import is_transient
from pipeline.errors import BusUnavailable, MessageTooLarge, TransientError
from pipeline.events import STUDY_SKIPPED, Event, dead_letter_topic
from pipeline.sql_bus import SqlProducer
from unit.pipeline.conftest import Service, skipped


def publish(service: Service, *numbers: int) -> None:
    service.bus.producer().publish([Message(STUDY_SKIPPED, "1.2.3", skipped(n).to_bytes()) for n in numbers])


def consumer_of(service: Service, handler: Handler) -> EventConsumer:
    return EventConsumer(service.bus, "group", {STUDY_SKIPPED: handler}, service.database, service.inbox, service.clock)


def entering(service: Service, before: Callable[[int], None] = lambda _: None) -> Handler:
    def handler(connection: Connection, event: Event) -> None:
        number = event.data["study_version"]
        connection.execute(service.effects.insert().values(number=number))
        before(number)

    return handler


def effects(service: Service) -> list[int]:
    return service.values(sa.select(service.effects.c.number))


def test_attempts_are_spaced_and_counted(service: Service, clock: ManualClock) -> None:
    calls: list[float] = []

    def fail(_number: int) -> None:
        calls.append(clock.monotonic())
        raise ValueError

    publish(service, 1)
    consumer = consumer_of(service, entering(service, fail))
    assert consumer.step(threading.Event(), 1) == 1
    consumer.close()
    assert calls == pytest.approx([0, 0.1, 0.3, 0.7, 1.5])
    assert effects(service) == []


def test_a_transient_error_gives_the_rest_of_the_batch_back(service: Service) -> None:
    troubles = [2]

    def once(number: int) -> None:
        if number in troubles:
            troubles.remove(number)
            raise TransientError("not now")

    publish(service, 1, 2, 3)
    consumer = consumer_of(service, entering(service, once))
    with pytest.raises(TransientError):
        consumer.step(threading.Event(), 1)
    assert effects(service) == [1]
    assert consumer.step(threading.Event(), 1) == 2
    consumer.close()
    assert effects(service) == [1, 2, 3]
    assert service.bus.lag("group", [STUDY_SKIPPED]) == 0


def test_a_failed_commit_loses_and_repeats_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(service, 1, 2, 3)
    consumer = consumer_of(service, entering(service))
    real = service.bus.consumer

    class FlakyCommit:
        """Fails to commit the second record once."""

        def __init__(self, inner: Consumer) -> None:
            self._inner = inner
            self._commits = 0

        def commit(self, record: Record) -> None:
            self._commits += 1
            if self._commits == 2:
                raise BusUnavailable("away")
            self._inner.commit(record)

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

    monkeypatch.setattr(service.bus, "consumer", lambda group, topics: FlakyCommit(real(group, topics)))
    with pytest.raises(BusUnavailable):
        consumer.step(threading.Event(), 1)
    while service.bus.lag("group", [STUDY_SKIPPED]):
        consumer.step(threading.Event(), 1)
    consumer.close()
    assert effects(service) == [1, 2, 3]


def test_stopping_gives_back_what_is_not_begun(service: Service) -> None:
    stop = threading.Event()
    publish(service, 1, 2, 3)
    consumer = consumer_of(service, entering(service, lambda number: stop.set() if number == 1 else None))
    assert consumer.step(stop, 1) == 1
    consumer.close()
    assert effects(service) == [1]
    assert service.bus.lag("group", [STUDY_SKIPPED]) == 2


def test_the_loop_waits_for_the_database(service: Service) -> None:
    troubles = ["locked"] * 3
    stop = threading.Event()

    def locked(_number: int) -> None:
        if troubles:
            troubles.pop()
            raise sa.exc.OperationalError("INSERT", {}, Exception("database is locked"))
        stop.set()

    publish(service, 1)
    consumer_of(service, entering(service, locked)).run(stop)
    assert effects(service) == [1]
    assert service.clock.monotonic() == pytest.approx(0.2 + 0.4 + 0.8)


def test_the_inbox_forgets_after_its_time(service: Service, clock: ManualClock) -> None:
    event = skipped(1)
    with service.database.write() as connection:
        assert service.inbox.first_time(connection, "group", event, clock)
        assert not service.inbox.first_time(connection, "group", event, clock)
        assert service.inbox.first_time(connection, "other", event, clock)
    service.inbox.prune(service.database, clock)
    with service.database.write() as connection:
        assert not service.inbox.first_time(connection, "group", event, clock)
    clock.advance(timedelta(days=15).total_seconds())
    service.inbox.prune(service.database, clock)
    with service.database.write() as connection:
        assert service.inbox.first_time(connection, "group", event, clock)


def test_wrong_statements_are_not_waited_for(service: Service) -> None:
    with pytest.raises(sa.exc.OperationalError) as caught, service.database.read() as connection:
        connection.execute(sa.text("SELECT * FROM no_such_table"))
    assert not is_transient(caught.value)
    assert is_transient(sa.exc.OperationalError("", {}, Exception("server closed the connection")))
    assert is_transient(sa.exc.InternalError("", {}, Exception(), connection_invalidated=True))
    assert not is_transient(sa.exc.IntegrityError("", {}, Exception()))
    assert not is_transient(sa.exc.DataError("", {}, Exception()))


def test_a_dead_letter_that_its_topic_does_not_take_goes_without_the_event(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = SqlProducer.publish

    def narrow(producer: SqlProducer, messages: Sequence[Message]) -> None:
        if any(len(message.value) > 4096 for message in messages):
            raise MessageTooLarge("larger than max.message.bytes")
        publish(producer, messages)

    service.bus.ensure_topics([STUDY_SKIPPED])
    service.bus.producer().publish([Message(STUDY_SKIPPED, "1.2.3", b"no event" * 1000)])
    monkeypatch.setattr(SqlProducer, "publish", narrow)
    handlers = {STUDY_SKIPPED: lambda *_: None}
    consumer = EventConsumer(service.bus, "group", handlers, service.database, service.inbox, service.clock)
    letters = service.bus.consumer("reader", [dead_letter_topic(STUDY_SKIPPED)])
    while not consumer.step(threading.Event(), 0.1):
        pass
    while not (records := letters.poll(0.1)):
        pass
    consumer.close()
    letters.close()
    [letter] = [Event.from_bytes(record.value) for record in records]
    assert letter.data["value_base64"] == ""
    assert letter.data["error_code"] == "not_json"
    assert "takes no event of 8000 bytes" in letter.data["error_message"]
