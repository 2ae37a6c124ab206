"""Writing the read model."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection

from console.adapters import tables
from console.domain.facts import DeadLetter, Fact, Image, WireRefusal
from console.domain.state import StudySummary
from pipeline.database import Database

log = logging.getLogger(__name__)


class SqlProjection:
    """The read model behind one open transaction of SQLite or PostgreSQL."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sqlite = connection.dialect.name == "sqlite"

    def _insert(self, table: sa.Table) -> Any:
        return sqlite_insert(table) if self._sqlite else postgresql_insert(table)

    def lock_study(self, study_instance_uid: str) -> None:
        """An advisory lock on PostgreSQL; SQLite lets one writer in at a time anyway.

        Without it two consumers could each add a fact, not see the other's, and save a summary that lacks one.
        """
        if not self._sqlite:
            lock = sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:uid, 0))")
            self._connection.execute(lock, {"uid": study_instance_uid})

    def add_fact(self, fact: Fact) -> None:
        """Insert, unless the event is known."""
        self._connection.execute(self._insert(tables.facts).values(asdict(fact)).on_conflict_do_nothing())

    def facts_of(self, study_instance_uid: str) -> Sequence[Fact]:
        """Read them all: a study has a few dozen at most."""
        return read_facts(self._connection, study_instance_uid)

    def add_images(self, images: Sequence[Image]) -> None:
        """Upsert by SOP Instance UID."""
        if not images:
            return
        insert = self._insert(tables.images)
        key = ("study_instance_uid", "sop_instance_uid")
        names = [column.name for column in tables.images.c if column.name not in key]
        statement = insert.on_conflict_do_update(
            index_elements=list(key),
            set_={name: insert.excluded[name] for name in names},
            where=insert.excluded.version >= tables.images.c.version,
        )
        self._connection.execute(statement, [asdict(image) for image in images])

    def add_dead_letter(self, letter: DeadLetter) -> None:
        """Insert, unless the letter is known."""
        self._connection.execute(self._insert(tables.dead_letters).values(asdict(letter)).on_conflict_do_nothing())

    def add_refusal(self, refusal: WireRefusal) -> None:
        """Insert, unless the refusal is known."""
        self._connection.execute(self._insert(tables.refusals).values(asdict(refusal)).on_conflict_do_nothing())

    def save(self, summary: StudySummary, now: datetime) -> None:
        """Upsert the study's line."""
        row = asdict(summary)
        reason = row.pop("reason") or {}
        row |= {
            "flags": list(summary.flags),
            "reason_code": reason.get("code"),
            "reason_text": reason.get("text"),
            "next_attempt_at": reason.get("next_attempt_at"),
            "projected_at": now,
        }
        insert = self._insert(tables.studies).values(row)
        self._connection.execute(
            insert.on_conflict_do_update(
                index_elements=["study_instance_uid"],
                set_={name: insert.excluded[name] for name in row if name != "study_instance_uid"},
            )
        )


def read_facts(connection: Connection, study_instance_uid: str) -> list[Fact]:
    """All facts of a study."""
    query = sa.select(tables.facts).where(tables.facts.c.study_instance_uid == study_instance_uid)
    return [Fact(**row) for row in connection.execute(query).mappings()]


def begin_generation(database: Database, number: int) -> None:
    """Empty the read model when the settings ask for a newer generation than the one it was built as.

    An older one ends the process with status 2: its consumer group has read the topics before and would fill nothing.
    """
    with database.write() as connection:
        built = connection.scalar(sa.select(tables.generation.c.number))
        if built == number:
            return
        if built is not None and built > number:
            given = f"is {number}; the read model was built as {built}, and allowed is that or more"
            sys.stderr.write(f"wrong setting ECHO_PROJECTION_GENERATION: {given}\n")
            raise SystemExit(2)
        if built is not None:
            log.warning("read model is built anew", extra={"generation": number})
            for table in (
                tables.studies,
                tables.facts,
                tables.images,
                tables.dead_letters,
                tables.refusals,
                tables.inbox.table,
            ):
                connection.execute(table.delete())
            connection.execute(tables.generation.delete())
        insert = sqlite_insert if database.is_sqlite else postgresql_insert
        connection.execute(insert(tables.generation).values(only=1, number=number).on_conflict_do_nothing())
