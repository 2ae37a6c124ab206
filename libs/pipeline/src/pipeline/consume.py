"""The loop between a consumer group and a service's handlers: inbox, retries, dead letters.

Each event is handled in one database transaction together with its inbox row, so that an event delivered twice has
its effect once. What no attempt can handle goes to the dead-letter topic with the reason and blocks nothing behind it.
"""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection

from pipeline.bus import Bus, Consumer, Message, Producer, Record
from pipeline.clock import Clock
from pipeline.database import Database, is_transient
from pipeline.errors import InvalidEvent, MessageTooLarge, reason_of
from pipeline.events import DEAD_LETTER, DEAD_LETTER_SUFFIX, Event, dead_letter_topic
from pipeline.telemetry import DEAD_LETTERS, EVENTS_CONSUMED
from pipeline.tracing import trace

log = logging.getLogger(__name__)

Handler = Callable[[Connection, Event], None]
"""Does one event's work with the given open transaction; raising rolls it back and asks for another attempt."""


class Inbox:
    """The table `inbox` in the service's own database: which events had their effect already."""

    def __init__(self, metadata: sa.MetaData) -> None:
        self.table = sa.Table(
            "inbox",
            metadata,
            sa.Column("consumer", sa.Text, primary_key=True),
            sa.Column("event_id", sa.Text, primary_key=True),
            sa.Column("handled_at", sa.DateTime(timezone=True), nullable=False, index=True),
        )

    def first_time(self, connection: Connection, consumer: str, event: Event, clock: Clock) -> bool:
        """Enter the event; false when it stands there already."""
        insert = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
        entered = connection.execute(
            insert(self.table)
            .values(consumer=consumer, event_id=event.id, handled_at=clock.now())
            .on_conflict_do_nothing()
            .returning(self.table.c.event_id)  # the row count of an insert is not known on PostgreSQL
        )
        return entered.first() is not None

    def prune(self, database: Database, clock: Clock, keep: timedelta = timedelta(days=14)) -> None:
        """Forget events older than any redelivery can be."""
        with database.write() as connection:
            connection.execute(self.table.delete().where(self.table.c.handled_at < clock.now() - keep))


class EventConsumer:
    """Runs one consumer group's member over the topics of `handlers` (topic -> handler).

    A topic is the type of its events, except that `<type>.dlq` carries dead letters. What cannot be read from a
    dead-letter topic stays there and is passed over: there is no dead letter of a dead letter.
    """

    def __init__(
        self,
        bus: Bus,
        group: str,
        handlers: Mapping[str, Handler],
        database: Database,
        inbox: Inbox,
        clock: Clock,
        *,
        max_attempts: int = 5,
        backoff_s: float = 0.1,
    ) -> None:
        self._bus = bus
        self._group = group
        self._handlers = dict(handlers)
        self._database = database
        self._inbox = inbox
        self._clock = clock
        self._max_attempts = max_attempts
        self._backoff_s = backoff_s
        self._consumer: Consumer | None = None
        self._producer: Producer | None = None
        self._next_prune = 0.0

    def run(self, stop: threading.Event) -> None:
        """Consume until stopped; an unreachable bus or database is waited for."""
        failures = 0
        try:
            while not stop.is_set():
                try:
                    self.step(stop, timeout_s=0.5)
                    failures = 0
                except Exception as error:
                    if not is_transient(error):
                        raise
                    failures += 1
                    log.warning(
                        "consumer waits",
                        extra={"group": self._group, "reason": reason_of(error), "failures": failures},
                    )
                    self._clock.wait(stop, min(5.0, 0.1 * 2**failures))
        finally:
            self.close()

    def step(self, stop: threading.Event, timeout_s: float) -> int:
        """One poll and the handling of what it brought; returns the number of records handled."""
        if self._consumer is None:
            self._consumer = self._bus.consumer(self._group, list(self._handlers))
        if self._clock.monotonic() >= self._next_prune:
            self._inbox.prune(self._database, self._clock)
            self._next_prune = self._clock.monotonic() + 3600
        handled = 0
        records = self._consumer.poll(timeout_s)
        for index, record in enumerate(records):
            try:
                finished = not stop.is_set() and self._handle(record, stop)
                if finished:
                    self._consumer.commit(record)
            except Exception:
                # What was handled but not committed comes again, and the inbox passes over it.
                self._give_back(records[index:])
                raise
            if not finished:
                self._give_back(records[index:])
                return handled
            handled += 1
        return handled

    def _give_back(self, records: list[Record]) -> None:
        assert self._consumer is not None
        for record in reversed(records):  # the oldest of each partition is rewound to last
            self._consumer.rewind(record)

    def _handle(self, record: Record, stop: threading.Event) -> bool:
        """False when stopping came between attempts; raises when the world is not ready."""
        try:
            event = Event.from_bytes(record.value)
            expected = DEAD_LETTER if record.topic.endswith(DEAD_LETTER_SUFFIX) else record.topic
            if event.type != expected:
                raise InvalidEvent("unknown_type", f"an event of {event.type!r} on topic {record.topic!r}")
        except InvalidEvent as error:
            self._bury(record, error.code, str(error), attempts=1)
            return True
        for attempt in range(1, self._max_attempts + 1):
            try:
                with trace(event.traceparent), self._database.write() as connection:
                    if self._inbox.first_time(connection, self._group, event, self._clock):
                        self._handlers[record.topic](connection, event)
                EVENTS_CONSUMED.labels(group=self._group, type=event.type).inc()
                return True
            except Exception as error:
                if is_transient(error):
                    raise
                log.exception(
                    "handler failed", extra={"group": self._group, "event_type": event.type, "attempt": attempt}
                )
                if attempt == self._max_attempts:
                    # The text of an arbitrary exception may quote the data: its type says enough here.
                    self._bury(record, "handler_failed", type(error).__name__, attempts=attempt)
                    return True
                if self._clock.wait(stop, self._backoff_s * 2 ** (attempt - 1)):
                    return False
        raise AssertionError("unreachable: the last attempt returns")

    def _bury(self, record: Record, code: str, message: str, attempts: int) -> None:
        """Publish the dead letter; only then may the record's offset be committed.

        If it is larger than its topic allows, it goes without the event, whose place it names.
        """
        DEAD_LETTERS.labels(group=self._group, topic=record.topic, code=code).inc()
        log.error("event buried", extra={"group": self._group, "topic": record.topic, "code": code})
        if record.topic.endswith(DEAD_LETTER_SUFFIX):
            return
        if self._producer is None:
            self._producer = self._bus.producer()
        value = base64.b64encode(record.value).decode()
        try:
            self._send_letter(record, code, message[:1024], attempts, value)
        except MessageTooLarge:
            note = f"{message[:900]} (the dead-letter topic takes no event of {len(record.value)} bytes)"
            self._send_letter(record, code, note, attempts, "")

    def _send_letter(self, record: Record, code: str, message: str, attempts: int, value_base64: str) -> None:
        assert self._producer is not None
        letter = Event(
            type=DEAD_LETTER,
            source=f"/{self._group}",
            subject=record.key[:256] or "unknown",
            correlationid=f"{record.topic}/{record.partition}/{record.offset}",
            time=self._clock.now(),
            data={
                "topic": record.topic,
                "partition": record.partition,
                "offset": record.offset,
                "key": record.key[:512],
                "value_base64": value_base64,
                "error_code": code,
                "error_message": message,
                "attempts": attempts,
                "consumer": self._group,
            },
        )
        self._producer.publish([Message(dead_letter_topic(record.topic), record.key, letter.to_bytes())])

    def close(self) -> None:
        """Leave the group."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
        if self._producer is not None:
            self._producer.close()
            self._producer = None
