"""Consumer groups of the embedded log: members with heartbeats, partitions with owners, all in tables.

Every member computes the same division of partitions from the same rows and takes only what nobody alive owns; what is
no longer its share it gives up at its next look. There is no leader. A position can be moved by the owner alone.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from pipeline.clock import Clock
from pipeline.database import Database, is_transient
from pipeline.sql_tables import members, partitions, positions, records

log = logging.getLogger(__name__)

Partition = tuple[str, int]

_MAX_SILENCE_S = 300.0  # a member that has not polled for this long is stuck: it stops saying that it lives
_GROUP_LOCK = 0x6275


@dataclass(frozen=True)
class _View:
    """What one look at the tables shows and asks for."""

    alive: bool
    expired: tuple[str, ...]
    owned: Mapping[Partition, int]
    """Owned partitions that stay, with their committed position."""
    take: tuple[Partition, ...]
    release: tuple[Partition, ...]
    awaited: int
    """Partitions of this member's share that another one alive has not given up yet."""

    @property
    def settled(self) -> bool:
        return self.alive and not (self.expired or self.take or self.release)


def divide(places: Sequence[Partition], subscriptions: Mapping[str, Sequence[str]]) -> dict[Partition, str]:
    """Who shall own what: round robin over the members that want the topic; a pure function of its arguments."""
    topics = sorted({topic for topic, _ in places})
    wanting = {topic: sorted(m for m, wants in subscriptions.items() if topic in wants) for topic in topics}
    return {
        (topic, number): wanting[topic][(topics.index(topic) + number) % len(wanting[topic])]
        for topic, number in places
        if wanting[topic]
    }


class GroupMember:
    """One consumer's membership. `positions` (owned partition -> next offset to read) belongs to the polling thread."""

    def __init__(
        self, database: Database, group: str, topics: Sequence[str], session_timeout_s: float, clock: Clock
    ) -> None:
        self.topics = tuple(dict.fromkeys(topics))
        self.positions: dict[Partition, int] = {}
        self._database = database
        self._group = group
        self._session_s = session_timeout_s
        self._clock = clock
        self._member = str(uuid.uuid4())
        # Built once: they run every few seconds, and building costs more than running.
        self._everyone = sa.select(members).where(members.c.group_name == group).order_by(members.c.member)
        self._counts = sa.select(
            sa.select(sa.func.count()).where(partitions.c.topic.in_(self.topics)).scalar_subquery(),
            sa.select(sa.func.count())
            .where(positions.c.group_name == group, positions.c.owner == self._member)
            .scalar_subquery(),
        )
        self._interval_s = min(session_timeout_s / 4, 2.0)
        self._next_look = 0.0
        self._settled: object = None
        self._last_poll = 0.0
        self._leaving = threading.Event()
        self._beat: threading.Thread | None = None

    def keep_up(self) -> bool:
        """Look at the group when it is time to, join, take and give up; true when the owned partitions changed."""
        now = self._last_poll = time.monotonic()
        if now < self._next_look:
            return False
        with self._database.read() as connection:
            signature = self._signature(connection)
            if signature == self._settled:
                self._next_look = time.monotonic() + self._interval_s
                return False
            view = self._look(connection)
        if not view.settled:
            with self._database.write() as connection:
                self._lock(connection)
                view = self._look(connection)
                self._apply(connection, view)
                view = self._look(connection)
            signature = None
        self._settled = signature if view.awaited == 0 else None
        self._next_look = time.monotonic() + self._interval_s
        if self._beat is None:
            # Handlers may take longer than the session: a thread says meanwhile that the member lives.
            self._beat = threading.Thread(target=self._heartbeats, name=f"heartbeat-{self._group}", daemon=True)
            self._beat.start()
        before = set(self.positions)
        self.positions = {place: self.positions.get(place, at) for place, at in view.owned.items()}
        return set(self.positions) != before

    def move(self, place: Partition, offset: int) -> None:
        """Read on from `offset`."""
        self.positions[place] = offset

    def commit(self, place: Partition, offset: int) -> None:
        """Move the group's position, if this member owns the partition."""
        topic, number = place
        with self._database.write() as connection:
            done = connection.execute(
                positions.update()
                .where(
                    positions.c.group_name == self._group,
                    positions.c.topic == topic,
                    positions.c.partition == number,
                    positions.c.owner == self._member,
                )
                .values(committed=offset)
            )
        if done.rowcount == 0:
            log.info("commit left out: the partition moved", extra={"group": self._group, "topic": topic})
            self.positions.pop(place, None)
            self._next_look, self._settled = 0.0, None

    def leave(self) -> None:
        """Give everything up at once; if the database is away, the session runs out instead."""
        self._leaving.set()
        if self._beat is not None:
            self._beat.join(timeout=5)
        self.positions = {}
        try:
            with self._database.write() as connection:
                self._lock(connection)
                self._remove(connection, [self._member])
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("left the group without saying so", extra={"group": self._group})

    def _lock(self, connection: Connection) -> None:
        if not self._database.is_sqlite:  # SQLite's BEGIN IMMEDIATE lets only one in
            connection.execute(
                sa.text("SELECT pg_advisory_xact_lock(:a, :b)"),
                {"a": _GROUP_LOCK, "b": zlib.crc32(self._group.encode()) - 2**31},
            )

    def _now(self, connection: Connection) -> float:
        """Seconds since 1970 by one clock for all members: the server's, or the machine's that holds the file."""
        if self._database.is_sqlite:
            return self._clock.now().timestamp()
        return float(connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())::double precision")) or 0)

    def _signature(self, connection: Connection) -> object:
        """What must differ before anything can be to do: who lives, how many partitions there are and are mine."""
        everyone, alive = self._members(connection)
        return everyone, list(alive), tuple(connection.execute(self._counts).one())

    def _members(self, connection: Connection) -> tuple[list[str], dict[str, list[str]]]:
        """All members, and the topics of those that live."""
        now = self._now(connection)
        rows = connection.execute(self._everyone).all()
        # A heartbeat from the future means that the clock was set back: its sender, if alive, soon beats again.
        alive = {row.member: json.loads(row.topics) for row in rows if abs(now - row.heartbeat_at) <= row.session_s}
        return [row.member for row in rows], alive

    def _look(self, connection: Connection) -> _View:
        everyone, alive = self._members(connection)
        held = {
            (row.topic, row.partition): row
            for row in connection.execute(sa.select(positions).where(positions.c.group_name == self._group))
        }
        places = [
            (topic, number)
            for topic, number in connection.execute(
                sa.select(partitions.c.topic, partitions.c.partition).where(partitions.c.topic.in_(self.topics))
            )
        ]
        me = self._member
        mine = {place for place, owner in divide(places, alive).items() if owner == me}
        owned = {place: row.committed for place, row in held.items() if row.owner == me and me in alive}
        take = sorted(p for p in mine - owned.keys() if held.get(p) is None or held[p].owner not in alive)
        return _View(
            alive=me in alive,
            expired=tuple(member for member in everyone if member not in alive),
            owned={place: at for place, at in owned.items() if place in mine},
            take=tuple(take),
            release=tuple(sorted(owned.keys() - mine)),
            awaited=len(mine - owned.keys()) - len(take),
        )

    def _apply(self, connection: Connection, view: _View) -> None:
        self._remove(connection, view.expired)
        if not view.alive:
            row = {"group_name": self._group, "member": self._member, "topics": json.dumps(self.topics)}
            connection.execute(
                members.insert().values(**row, session_s=self._session_s, heartbeat_at=self._now(connection))
            )
            view = self._look(connection)
        for place in view.release:
            connection.execute(self._row(place).values(owner=None))
        for topic, number in view.take:
            if connection.execute(self._row((topic, number)).values(owner=self._member)).rowcount == 0:
                connection.execute(
                    positions.insert().values(
                        group_name=self._group,
                        topic=topic,
                        partition=number,
                        owner=self._member,
                        committed=_oldest(connection, (topic, number)),
                    )
                )

    def _row(self, place: Partition) -> sa.Update:
        topic, number = place
        return positions.update().where(
            positions.c.group_name == self._group, positions.c.topic == topic, positions.c.partition == number
        )

    def _remove(self, connection: Connection, gone: Sequence[str]) -> None:
        if gone:
            group = positions.c.group_name == self._group
            connection.execute(positions.update().where(group, positions.c.owner.in_(gone)).values(owner=None))
            connection.execute(members.delete().where(members.c.group_name == self._group, members.c.member.in_(gone)))

    def _heartbeats(self) -> None:
        while not self._leaving.wait(self._interval_s):
            if time.monotonic() - self._last_poll > _MAX_SILENCE_S:
                continue
            try:
                with self._database.write() as connection:
                    connection.execute(
                        members.update()
                        .where(members.c.group_name == self._group, members.c.member == self._member)
                        .values(heartbeat_at=self._now(connection))
                    )
            except Exception as error:
                if not is_transient(error):
                    raise
                log.debug("heartbeat failed", extra={"group": self._group})  # the next poll tells the service


def _oldest(connection: Connection, place: Partition) -> int:
    """Where a group begins that never read this partition: the oldest record that is left."""
    topic, number = place
    oldest = connection.scalar(
        sa.select(sa.func.min(records.c.offset)).where(records.c.topic == topic, records.c.partition == number)
    )
    if oldest is not None:
        return int(oldest)
    head = connection.scalar(
        sa.select(partitions.c.next_offset).where(partitions.c.topic == topic, partitions.c.partition == number)
    )
    return int(head or 0)
