"""Reading the read model. Every list is a keyset page over an index: the cost does not grow with the table."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from console.adapters import tables
from console.adapters.projection import read_facts
from console.domain.facts import Fact, Image
from console.domain.state import NEEDS_A_PERSON, State
from pipeline.clock import iso, parse_iso
from pipeline.database import Database

Row = Mapping[str, Any]
COUNT_LIMIT = 100
"""Counts shown to people stop here: "99+" is as good to them, and the database need not count a million rows."""


class WrongCursor(ValueError):
    """A cursor that this service did not make."""


@dataclass(frozen=True)
class StudyFilter:
    """What is searched for; None means anything. Identifiers match as a whole; `since` is a time of receipt."""

    accession: str | None = None
    patient_id: str | None = None
    state: State | None = None
    since: datetime | None = None


@dataclass(frozen=True)
class RefusalFilter:
    """What is searched for among refusals; None means anything. `until` is not included."""

    calling_ae_title: str | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class Page:
    """Some rows, newest first, and the cursor of what follows (None at the end)."""

    rows: list[Row]
    next: str | None


def encode_cursor(at: datetime, key: str) -> str:
    """The place behind a row, as an opaque text."""
    return base64.urlsafe_b64encode(f"{iso(at)} {key}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[datetime, str]:
    """The place again; `WrongCursor` if it is none."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        at, key = text.split(" ", 1)
        if "\0" in key:
            raise ValueError("no text of a database")
        return parse_iso(at), key
    except (ValueError, OverflowError, binascii.Error) as error:
        raise WrongCursor("the cursor is not one that this list gave out") from error


class Queries:
    """All that pages and the REST API read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def studies(self, wanted: StudyFilter, cursor: str | None, limit: int) -> Page:
        """Studies by time of receipt, newest first."""
        t = tables.studies.c
        query = sa.select(tables.studies)
        if wanted.accession is not None:
            query = query.where(t.accession_number == wanted.accession)
        if wanted.patient_id is not None:
            query = query.where(t.patient_id == wanted.patient_id)
        if wanted.state is not None:
            query = query.where(t.state == wanted.state)
        if wanted.since is not None:
            query = query.where(t.received_at >= wanted.since)
        return self._page(query, t.received_at, t.study_instance_uid, cursor, limit)

    def dead_letters(self, cursor: str | None, limit: int) -> Page:
        """Dead letters, newest first."""
        t = tables.dead_letters.c
        return self._page(sa.select(tables.dead_letters), t.at, t.event_id, cursor, limit)

    def refusals(self, wanted: RefusalFilter, cursor: str | None, limit: int) -> Page:
        """What senders were refused, newest first."""
        t = tables.refusals.c
        query = sa.select(tables.refusals)
        if wanted.calling_ae_title is not None:
            query = query.where(t.calling_ae_title == wanted.calling_ae_title)
        if wanted.reason is not None:
            query = query.where(t.reason_code == wanted.reason)
        if wanted.since is not None:
            query = query.where(t.at >= wanted.since)
        if wanted.until is not None:
            query = query.where(t.at < wanted.until)
        return self._page(query, t.at, t.event_id, cursor, limit)

    def _page(
        self,
        query: sa.Select[Any],
        at: sa.ColumnElement[datetime],
        key: sa.ColumnElement[str],
        cursor: str | None,
        limit: int,
    ) -> Page:
        if cursor is not None:
            last_at, last_key = decode_cursor(cursor)
            behind = sa.tuple_(sa.literal(last_at, tables.UtcDateTime), sa.literal(last_key))
            query = query.where(sa.tuple_(at, key) < behind)
        query = query.order_by(at.desc(), key.desc()).limit(limit + 1)
        with self._database.read() as connection:
            rows: list[Row] = [dict(row) for row in connection.execute(query).mappings()]
        more = len(rows) > limit
        rows = rows[:limit]
        return Page(rows, encode_cursor(rows[-1][at.key or ""], rows[-1][key.key or ""]) if more else None)

    def study(self, study_instance_uid: str) -> tuple[list[Fact], list[Image]]:
        """All that is known of a study; no facts means that it is unknown."""
        query = sa.select(tables.images).where(tables.images.c.study_instance_uid == study_instance_uid)
        with self._database.read() as connection:
            facts = read_facts(connection, study_instance_uid)
            images = [Image(**row) for row in connection.execute(query).mappings()]
        return facts, images

    def image(self, study_instance_uid: str, sop_instance_uid: str) -> Image | None:
        """Where the bytes of an object are."""
        t = tables.images.c
        query = sa.select(tables.images).where(
            t.study_instance_uid == study_instance_uid, t.sop_instance_uid == sop_instance_uid
        )
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else Image(**row)

    def waiting_for_delivery(self, limit: int) -> list[Row]:
        """Reports that the EHR did not take yet and that are tried again by themselves."""
        t = tables.studies.c
        query = (
            sa.select(tables.studies)
            .where(t.state == sa.literal_column("'generated'"), t.reason_code.is_not(None))
            .order_by(t.received_at.desc(), t.study_instance_uid.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def problem_count(self) -> int:
        """Studies that need a person plus dead letters, counted up to `COUNT_LIMIT`."""
        studies = sa.select(sa.literal(1)).where(tables.studies.c.state.in_(NEEDS_A_PERSON)).limit(COUNT_LIMIT)
        letters = sa.select(sa.literal(1)).select_from(tables.dead_letters).limit(COUNT_LIMIT)
        with self._database.read() as connection:
            found = sum(
                connection.scalar(sa.select(sa.func.count()).select_from(query.subquery())) or 0
                for query in (studies, letters)
            )
        return min(found, COUNT_LIMIT)

    def newest_changes(self, limit: int) -> list[Row]:
        """The lines written last, newest first."""
        t = tables.studies.c
        query = (
            sa.select(t.study_instance_uid, t.accession_number, t.state, t.version, t.projected_at)
            .order_by(t.projected_at.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]
