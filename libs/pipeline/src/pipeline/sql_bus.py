"""The embedded event bus: a partitioned log in a SQL database (SQLite in WAL mode, or PostgreSQL), without a server.

Publishing is one transaction, on disk when it returns. Consumers look with one cheap statement every 5 to 50 ms. The
group protocol is in `sql_group`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from pipeline.bus import Message, Record
from pipeline.clock import Clock, SystemClock
from pipeline.database import Database, is_transient
from pipeline.errors import BusUnavailable
from pipeline.sql_group import GroupMember, Partition
from pipeline.sql_tables import metadata, partitions, positions, records
from pipeline.telemetry import EVENTS_PUBLISHED

log = logging.getLogger(__name__)

_SCHEMA_LOCK = 0x62757300  # PostgreSQL advisory lock of whoever creates tables or topics
_PAUSE_MIN_S, _PAUSE_MAX_S = 0.005, 0.05
_PRUNE_EVERY_S = 3600.0


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Database errors that may pass become `BusUnavailable`."""
    try:
        yield
    except Exception as error:
        if is_transient(error):
            # The driver's text may quote a row; its type is enough.
            cause = getattr(error, "orig", None) or error
            raise BusUnavailable(f"the bus database does not answer: {type(cause).__name__}") from error
        raise


def partition_of(key: str, count: int) -> int:
    """The partition of a key; the same in every process and for ever (unlike `hash`)."""
    return zlib.crc32(key.encode()) % count


class SqlBus:
    """The `Bus` on a SQL database; `url` as SQLAlchemy writes it."""

    def __init__(
        self,
        url: str,
        *,
        partitions: int = 6,
        session_timeout_s: float = 6.0,
        retention: timedelta = timedelta(days=14),
        batch: int = 100,
        clock: Clock | None = None,
    ) -> None:
        self._log = Database(url)
        # What consumers write (positions, heartbeats) need not reach the disk at once: a power cut that takes a
        # position back only makes the group see records again. A killed process takes nothing back.
        self._groups = Database(url, synchronous="NORMAL")
        self._partitions = partitions
        self._session_timeout_s = session_timeout_s
        self._retention = retention
        self._batch = batch
        self._clock = clock or SystemClock()
        self._schema_ready = False
        self._schema_lock = threading.Lock()
        self._next_prune = 0.0

    def ensure_topics(self, topics: Sequence[str]) -> None:
        """Enter the partitions of topics that have none."""
        self.prepare()
        with translated(), self._log.write() as connection:
            self.create_topics(connection, topics)

    def create_topics(self, connection: Connection, topics: Sequence[str]) -> None:
        """The same inside the caller's transaction."""
        self._lock_schema(connection)
        known = set(connection.scalars(sa.select(partitions.c.topic).where(partitions.c.topic.in_(topics)).distinct()))
        rows = [
            {"topic": topic, "partition": number, "next_offset": 0}
            for topic in dict.fromkeys(topics)
            if topic not in known
            for number in range(self._partitions)
        ]
        if rows:
            connection.execute(partitions.insert(), rows)

    def prepare(self) -> None:
        """Create the tables once; safe when several processes start together."""
        with self._schema_lock:
            if not self._schema_ready:
                with translated(), self._log.write() as connection:
                    self._lock_schema(connection)
                    metadata.create_all(connection)
                self._schema_ready = True

    def _lock_schema(self, connection: Connection) -> None:
        if not self._log.is_sqlite:  # SQLite's BEGIN IMMEDIATE lets only one in
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:n)"), {"n": _SCHEMA_LOCK})

    def producer(self) -> SqlProducer:
        """Producers hold nothing of their own."""
        return SqlProducer(self, self._log, self._clock)

    def consumer(self, group: str, topics: Sequence[str]) -> SqlConsumer:
        """A new member; it joins at its first poll."""
        self.prepare()
        member = GroupMember(self._groups, group, topics, self._session_timeout_s, self._clock)
        return SqlConsumer(self, self._groups, member, self._batch)

    def lag(self, group: str, topics: Sequence[str]) -> int:
        """Heads minus committed positions; records already pruned do not count."""
        self.prepare()
        oldest = (
            sa.select(sa.func.min(records.c.offset))
            .where(records.c.topic == partitions.c.topic, records.c.partition == partitions.c.partition)
            .scalar_subquery()
        )
        start = sa.func.coalesce(positions.c.committed, oldest, partitions.c.next_offset)
        joined = partitions.outerjoin(
            positions,
            (positions.c.topic == partitions.c.topic)
            & (positions.c.partition == partitions.c.partition)
            & (positions.c.group_name == group),
        )
        query = sa.select(sa.func.coalesce(sa.func.sum(partitions.c.next_offset - start), 0)).select_from(joined)
        with translated(), self._groups.read() as connection:
            return int(connection.scalar(query.where(partitions.c.topic.in_(topics))) or 0)

    def prune(self) -> int:
        """Delete records that are older than the retention and that every group of their topic has committed.

        A topic that no group ever read keeps everything. Returns how many records went.
        """
        self.prepare()
        limit = self._clock.now().timestamp() - self._retention.total_seconds()
        slowest = (
            sa.select(sa.func.min(positions.c.committed))
            .where(positions.c.topic == records.c.topic, positions.c.partition == records.c.partition)
            .scalar_subquery()
        )
        statement = records.delete().where(records.c.created_at < limit, records.c.offset < slowest)
        with translated(), self._groups.write() as connection:
            return int(connection.execute(statement).rowcount)

    def prune_if_due(self) -> None:
        """`prune` at most once an hour; consumers call it, so it needs no thread."""
        now = time.monotonic()
        if now >= self._next_prune:
            self._next_prune = now + _PRUNE_EVERY_S
            pruned = self.prune()
            if pruned:
                log.info("old events deleted", extra={"count": pruned})

    def ping(self) -> None:
        """Ask the database."""
        self.prepare()
        with translated(), self._groups.read() as connection:
            connection.execute(sa.select(partitions.c.topic).limit(1))

    def close(self) -> None:
        """Close all connections."""
        self._log.close()
        self._groups.close()


class SqlProducer:
    """Appends in one transaction; thread-safe."""

    def __init__(self, bus: SqlBus, database: Database, clock: Clock) -> None:
        self._bus = bus
        self._database = database
        self._clock = clock

    def publish(self, messages: Sequence[Message]) -> None:
        """All or none; a topic that does not exist yet is created."""
        if not messages:
            return
        self._bus.prepare()
        with translated(), self._database.write() as connection:
            counts = self._partition_counts(connection, {message.topic for message in messages})
            placed: dict[Partition, list[Message]] = defaultdict(list)
            for message in messages:
                placed[message.topic, partition_of(message.key, counts[message.topic])].append(message)
            now = self._clock.now().timestamp()
            rows = []
            for topic, number in sorted(placed):  # one order for all, or two producers could wait for each other
                batch = placed[topic, number]
                head = connection.scalar(
                    partitions.update()
                    .where(partitions.c.topic == topic, partitions.c.partition == number)
                    .values(next_offset=partitions.c.next_offset + len(batch))
                    .returning(partitions.c.next_offset)
                )
                assert head is not None
                for offset, message in enumerate(batch, start=head - len(batch)):
                    rows.append(
                        {
                            "topic": topic,
                            "partition": number,
                            "offset": offset,
                            "key": message.key,
                            "value": message.value,
                            "headers": json.dumps(dict(message.headers)),
                            "created_at": now,
                        }
                    )
            connection.execute(records.insert(), rows)
        for message in messages:
            EVENTS_PUBLISHED.labels(topic=message.topic).inc()

    def _partition_counts(self, connection: Connection, topics: set[str]) -> dict[str, int]:
        query = (
            sa.select(partitions.c.topic, sa.func.count())
            .where(partitions.c.topic.in_(topics))
            .group_by(partitions.c.topic)
        )
        counts = {topic: int(count) for topic, count in connection.execute(query)}
        if topics - counts.keys():
            self._bus.create_topics(connection, sorted(topics - counts.keys()))
            counts = {topic: int(count) for topic, count in connection.execute(query)}
        return counts

    def close(self) -> None:
        """Nothing to release."""


class SqlConsumer:
    """One member of a group: reads the partitions it owns, from the committed positions on."""

    def __init__(self, bus: SqlBus, database: Database, member: GroupMember, batch: int) -> None:
        self._bus = bus
        self._database = database
        self._member = member
        self._batch = batch
        self._pause_s = _PAUSE_MIN_S
        self._probe = _ChangeProbe(database, member.topics)
        self._look = True  # there may be records although nothing changed since the last look

    def poll(self, timeout_s: float) -> list[Record]:
        """Records of owned partitions; keeps the membership alive."""
        deadline = time.monotonic() + timeout_s
        with translated():
            while True:
                if self._member.keep_up():
                    self._look = True
                self._bus.prune_if_due()
                found = self._fetch()
                if found:
                    self._pause_s = _PAUSE_MIN_S
                    return found
                left = deadline - time.monotonic()
                if left <= 0:
                    return []
                time.sleep(min(self._pause_s, left))
                self._pause_s = min(self._pause_s * 1.5, _PAUSE_MAX_S)

    def _fetch(self) -> list[Record]:
        changed = self._probe.changed()  # before reading: what is published from here on changes it again
        if not (self._look or changed) or not self._member.positions:
            return []
        self._look = True  # stays so if the reading fails
        found: list[Record] = []
        with self._database.read() as connection:
            heads = {
                (topic, number): head
                for topic, number, head in connection.execute(
                    sa.select(partitions).where(partitions.c.topic.in_(self._member.topics))
                )
            }
            waiting = [place for place, at in self._member.positions.items() if heads.get(place, 0) > at]
            for place in waiting:
                limit = self._batch - len(found)
                if limit <= 0:
                    break
                read = self._read(connection, place, limit)
                found.extend(read)
                if len(read) == limit:
                    self._member.move(place, read[-1].offset + 1)
                else:  # everything up to the head was read, or pruned
                    self._member.move(place, max(heads[place], read[-1].offset + 1 if read else 0))
        self._look = len(found) >= self._batch
        return found

    def _read(self, connection: Connection, place: Partition, limit: int) -> list[Record]:
        topic, number = place
        rows = connection.execute(
            sa.select(records.c.offset, records.c.key, records.c.value, records.c.headers)
            .where(
                records.c.topic == topic,
                records.c.partition == number,
                records.c.offset >= self._member.positions[place],
            )
            .order_by(records.c.offset)
            .limit(limit)
        )
        return [Record(topic, number, offset, key, value, json.loads(hs)) for offset, key, value, hs in rows]

    def commit(self, record: Record) -> None:
        """One statement, which changes nothing unless this member owns the partition."""
        with translated():
            self._member.commit((record.topic, record.partition), record.offset + 1)

    def rewind(self, record: Record) -> None:
        """Move back, if the partition is still owned."""
        if (record.topic, record.partition) in self._member.positions:
            self._member.move((record.topic, record.partition), record.offset)
            self._look = True

    def assignment(self) -> frozenset[tuple[str, int]]:
        """What this member owns as far as it knows."""
        return frozenset(self._member.positions)

    def close(self) -> None:
        """Leave the group and drop the connection."""
        self._member.leave()
        self._probe.close()


class _ChangeProbe:
    """Answers "may there be new records?" for microseconds of work, on a connection that it keeps."""

    def __init__(self, database: Database, topics: Sequence[str]) -> None:
        self._database = database
        self._topics = list(topics)
        self._connection: Connection | None = None
        self._seen: object = None
        self._version: object = None
        marks = ",".join(["?" if database.is_sqlite else "%s"] * len(self._topics))
        self._statement = f"SELECT sum(next_offset) FROM {partitions.name} WHERE topic IN ({marks})"

    def changed(self) -> bool:
        """True at the first call and whenever somebody published since the last one."""
        dialect = self._database.engine.dialect
        try:
            value = self._value()
        except Exception as error:
            self.close()
            if isinstance(error, dialect.loaded_dbapi.Error):  # the driver's own, which SQLAlchemy did not see
                raise BusUnavailable(f"the bus database does not answer: {type(error).__name__}") from error
            raise
        if value == self._seen:
            return False
        self._seen = value
        return True

    def _value(self) -> object:
        if self._connection is None:
            self._connection = self._database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        # Past SQLAlchemy, which would cost ten times what the statements do; an idle consumer asks 20 times a second.
        driver = self._connection.connection.driver_connection
        assert driver is not None
        if self._database.is_sqlite:
            # Counts the commits of other connections; no transaction, no table is read. Heartbeats are commits, too.
            version = driver.execute("PRAGMA data_version").fetchone()[0]
            if version == self._version:
                return self._seen
            self._version = version
        return driver.execute(self._statement, self._topics).fetchone()[0]

    def close(self) -> None:
        """Give the connection back; the next call takes a new one."""
        if self._connection is not None:
            connection, self._connection, self._seen, self._version = self._connection, None, None, None
            with contextlib.suppress(sa.exc.DBAPIError):  # a dead connection cannot be given back tidily
                connection.close()
