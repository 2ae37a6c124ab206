"""Requests to fetch studies, on SQL."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dicom_listener.adapters.tables import fetched_priors, fetches, instances, studies
from dicom_listener.domain.fetch import Role, Share
from dicom_listener.handlers.fetch import Fetch, State, Wish
from pipeline.database import Database
from pipeline.errors import TransientError

_t = fetches.c


class SqlFetches:
    """Implements `handlers.fetch.Fetches`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ask(self, wish: Wish, now: datetime) -> tuple[Fetch, bool]:
        """Write a wish down (True), or find the same one that is not finished yet (False)."""
        key = f"{wish.study_instance_uid or ''}|{wish.accession_number or ''}|{wish.priors}"
        for _attempt in range(3):  # the same wish may be written down, or finish, in between
            try:
                with self._database.write() as connection:
                    found = connection.execute(sa.select(fetches).where(_t.wish_key == key, _t.done_at.is_(None)))
                    if (row := found.one_or_none()) is not None:
                        return _fetch(row), False
                    row = connection.execute(
                        fetches.insert()
                        .values(
                            id=str(uuid.uuid4()),
                            wish_key=key,
                            study_instance_uid=wish.study_instance_uid,
                            accession_number=wish.accession_number,
                            priors=wish.priors,
                            state="queued",
                            attempts=0,
                            shares=[],
                            created_at=now,
                            updated_at=now,
                            next_attempt_at=now,
                        )
                        .returning(fetches)
                    ).one()
                    return _fetch(row), True
            except sa.exc.IntegrityError:
                continue
        raise TransientError("the same request keeps being written down")

    def get(self, id_: str) -> Fetch | None:
        """One request."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(fetches).where(_t.id == id_)).one_or_none()
        return None if row is None else _fetch(row)

    def latest(self, state: State | None, limit: int) -> Sequence[Fetch]:
        """The newest requests."""
        query = sa.select(fetches).order_by(_t.created_at.desc(), _t.id).limit(limit)
        with self._database.read() as connection:
            rows = connection.execute(query if state is None else query.where(_t.state == state)).all()
        return [_fetch(row) for row in rows]

    def claim(self, now: datetime) -> Fetch | None:
        """Begin an attempt at the request that has been due longest."""
        due = sa.select(_t.id).where(_t.done_at.is_(None), _t.state == "queued", _t.next_attempt_at <= now)
        with self._database.read() as connection:
            id_ = connection.scalar(due.order_by(_t.next_attempt_at).limit(1))
        if id_ is None:
            return None
        with self._database.write() as connection:
            row = connection.execute(
                fetches.update()
                .where(_t.id == id_, _t.state == "queued")  # another thread may have been faster
                .values(state="running", attempts=_t.attempts + 1, updated_at=now, next_attempt_at=None)
                .returning(fetches)
            ).one_or_none()
        return None if row is None else _fetch(row)

    def report(self, id_: str, shares: Sequence[Share], now: datetime) -> None:
        """How far the attempt under way is."""
        self._set(id_, shares=[vars(share) for share in shares], updated_at=now)

    def finish(self, id_: str, state: State, problem: tuple[str, str] | None, now: datetime) -> None:
        """No more attempts."""
        reason, text = problem or (None, None)
        self._set(id_, state=state, reason=reason, text=text, updated_at=now, done_at=now)

    def postpone(self, id_: str, problem: tuple[str, str], until: datetime, now: datetime) -> None:
        """Another attempt, not before then."""
        reason, text = problem
        self._set(id_, state="queued", reason=reason, text=text, updated_at=now, next_attempt_at=until)

    def _set(self, id_: str, **values: Any) -> None:
        with self._database.write() as connection:
            connection.execute(fetches.update().where(_t.id == id_).values(**values))

    def adopt(self, now: datetime) -> int:
        """At start: attempts that died with the earlier process are due again."""
        with self._database.write() as connection:
            return connection.execute(
                fetches.update().where(_t.state == "running").values(state="queued", next_attempt_at=now)
            ).rowcount

    def open_count(self) -> int:
        """Requests that are not finished."""
        with self._database.read() as connection:
            return connection.scalar(sa.select(sa.func.count()).where(_t.done_at.is_(None))) or 0

    def forget(self, before: datetime) -> None:
        """Delete what was finished longer ago."""
        with self._database.write() as connection:
            connection.execute(fetches.delete().where(_t.done_at < before))

    def held(self, study_instance_uid: str) -> Collection[str]:
        """SOP Instance UIDs of the study's objects that are here."""
        i = instances.c
        query = sa.select(i.sop_instance_uid).where(
            i.study_instance_uid == study_instance_uid, i.valid, i.deleted_at.is_(None)
        )
        with self._database.read() as connection:
            return set(connection.scalars(query))

    def mark(self, study_instance_uid: str, role: Role, now: datetime) -> None:
        """A prior is marked unless the study came before by itself; a study asked for by name is none any more."""
        with contextlib.suppress(sa.exc.IntegrityError), self._database.write() as connection:
            if role == "study":
                connection.execute(
                    fetched_priors.delete().where(fetched_priors.c.study_instance_uid == study_instance_uid)
                )
                return
            known = sa.union_all(
                sa.select(studies.c.study_instance_uid).where(studies.c.study_instance_uid == study_instance_uid),
                sa.select(fetched_priors.c.study_instance_uid).where(
                    fetched_priors.c.study_instance_uid == study_instance_uid
                ),
            )
            if connection.execute(known).first() is None:
                connection.execute(fetched_priors.insert().values(study_instance_uid=study_instance_uid, at=now))


def _fetch(row: sa.Row[Any]) -> Fetch:
    return Fetch(
        id=row.id,
        wish=Wish(row.study_instance_uid, row.accession_number, row.priors),
        state=row.state,
        attempts=row.attempts,
        problem=None if row.reason is None else (row.reason, row.text),
        shares=tuple(Share(**share) for share in row.shares),
        created_at=row.created_at,
        updated_at=row.updated_at,
        next_attempt_at=row.next_attempt_at,
    )
