"""Transactional outbox: an event is written with the change it tells of, and published afterwards.

A crash between the two changes nothing: the row stays until the bus has acknowledged it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from pipeline.bus import Message, Producer
from pipeline.clock import Clock
from pipeline.database import Database, is_transient
from pipeline.errors import InvalidEvent, MessageTooLarge, reason_of
from pipeline.events import MAX_EVENT_BYTES, Event
from pipeline.telemetry import EVENTS_SET_ASIDE

log = logging.getLogger(__name__)

_RELAY_LOCK = 0x6F757462  # PostgreSQL advisory lock: one relay at a time, or order within a key would be lost

SET_ASIDE = datetime(9000, 1, 1, tzinfo=UTC)
"""`published_at` of an event that the bus refuses for its size: neither pending nor ever pruned.

Set it to NULL, when the topic takes more, and the event is published.
"""


class Outbox:
    """The table `outbox` in the service's own database."""

    def __init__(self, metadata: sa.MetaData) -> None:
        self.table = sa.Table(
            "outbox",
            metadata,
            sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
            sa.Column("topic", sa.Text, nullable=False),
            sa.Column("key", sa.Text, nullable=False),
            sa.Column("payload", sa.LargeBinary, nullable=False),
            sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
            sa.Column("published_at", sa.DateTime(timezone=True)),
            sa.Index(
                "outbox_pending",
                "id",
                sqlite_where=sa.text("published_at IS NULL"),
                postgresql_where=sa.text("published_at IS NULL"),
            ),
            sa.Index("outbox_published", "published_at"),
        )
        self._insert = self.table.insert()  # built once: making it anew costs more than running it
        self.wakeup = threading.Event()

    def add(self, connection: Connection, event: Event) -> None:
        """Write the event in the caller's transaction.

        Raises `InvalidEvent` for one that no broker would take: it would hold up all that come after it.
        """
        payload = event.to_bytes()
        if len(payload) > MAX_EVENT_BYTES:
            raise InvalidEvent("too_large", f"an event of {len(payload)} bytes; {MAX_EVENT_BYTES} are possible")
        connection.execute(
            self._insert, {"topic": event.topic, "key": event.key, "payload": payload, "created_at": event.time}
        )
        self.wakeup.set()


class OutboxRelay:
    """Publishes outbox rows in the order of their ids."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        producer: Producer,
        clock: Clock,
        *,
        batch: int = 200,
        idle_s: float = 0.02,
        idle_max_s: float = 0.5,
        keep: timedelta = timedelta(hours=24),
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._producer = producer
        self._clock = clock
        self._batch = batch
        self._idle_s = idle_s
        self._idle_max_s = idle_max_s
        self._keep = keep
        self._next_prune = 0.0

    def relay_once(self) -> int:
        """Publish one batch; returns how many rows. Rows are marked only after the bus acknowledged all of them.

        An event that is larger than its topic allows is set aside, and holds up nothing behind it.
        """
        table = self._outbox.table
        pending = sa.select(table).where(table.c.published_at.is_(None)).order_by(table.c.id)
        with self._database.read() as connection:
            if connection.execute(pending.limit(1)).first() is None:
                return 0
        with self._turn() as mine:
            if not mine:
                return 0
            # No transaction on these rows stays open while the bus is spoken to: SQLite has one writer, and publishing
            # would hold up the service's own work.
            with self._database.read() as connection:
                rows = connection.execute(pending.limit(self._batch)).all()
            refused = self._publish(rows)
            mark = table.update().where(table.c.id.in_([row.id for row in rows if row.id not in refused]))
            with self._database.write() as connection:
                connection.execute(mark.values(published_at=self._clock.now()))
                if refused:
                    connection.execute(table.update().where(table.c.id.in_(refused)).values(published_at=SET_ASIDE))
        return len(rows)

    def _publish(self, rows: Sequence[sa.Row[Any]]) -> list[int]:
        """Returns the numbers of those that are larger than their topic allows."""
        try:
            self._producer.publish([Message(row.topic, row.key, row.payload) for row in rows])
        except MessageTooLarge:
            if len(rows) > 1:  # the bus does not say which one
                return [number for row in rows for number in self._publish([row])]
            [row] = rows
            EVENTS_SET_ASIDE.labels(topic=row.topic).inc()
            log.exception(
                "event set aside: larger than its topic allows",
                extra={"topic": row.topic, "outbox_id": row.id, "bytes": len(row.payload)},
            )
            return [row.id]
        return []

    @contextlib.contextmanager
    def _turn(self) -> Iterator[bool]:
        """Whether this relay is the one to publish until the block ends; one process alone owns an SQLite file."""
        if self._database.is_sqlite:
            yield True
            return
        with self._database.read() as connection:
            yield bool(connection.scalar(sa.text("SELECT pg_try_advisory_xact_lock(:n)"), {"n": _RELAY_LOCK}))

    def prune(self) -> None:
        """Delete rows published longer ago than `keep`."""
        table = self._outbox.table
        with self._database.write() as connection:
            connection.execute(table.delete().where(table.c.published_at < self._clock.now() - self._keep))

    def run(self, stop: threading.Event) -> None:
        """Relay until stopped; an unreachable bus or database is waited for, with growing pauses up to 5 s."""
        failures = 0
        pause_s = self._idle_s
        while not stop.is_set():
            try:
                published = self.relay_once()
                if self._clock.monotonic() >= self._next_prune:
                    self.prune()
                    self._next_prune = self._clock.monotonic() + 600
                failures = 0
            except Exception as error:
                if not is_transient(error):
                    raise
                failures += 1
                log.warning("outbox relay waits", extra={"reason": reason_of(error), "failures": failures})
                self._clock.wait(stop, min(5.0, 0.1 * 2**failures))
                continue
            if published:
                pause_s = self._idle_s
                if published < self._batch:
                    self._clock.wait(stop, self._idle_s)  # a steady stream is published in batches, not row by row
            elif self._outbox.wakeup.wait(pause_s):
                # Told before the commit: look soon and often for a while, then seldom again (other processes may
                # write to the outbox, too).
                self._outbox.wakeup.clear()
                self._clock.wait(stop, self._idle_s)
                pause_s = self._idle_s
            else:
                pause_s = min(pause_s * 1.5, self._idle_max_s)
