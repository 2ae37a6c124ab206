"""What the database knows of objects, for sweeping."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

import sqlalchemy as sa

from dicom_listener.adapters.tables import instances, refusals, studies
from pipeline.clock import Clock
from pipeline.database import Database


class SqlObjectIndex:
    """Implements `handlers.sweep.ObjectIndex`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def needed(self, keys: Sequence[str]) -> Collection[str]:
        """Those of the keys for which a row speaks: of an object, or of the refusal that put it in quarantine."""
        t, r = instances.c, refusals.c
        of_objects = sa.select(t.object_key).where(t.object_key.in_(keys), t.deleted_at.is_(None))
        of_refusals = sa.select(r.quarantine_key).where(r.quarantine_key.in_(keys))
        with self._database.read() as connection:
            return set(connection.scalars(sa.union_all(of_objects, of_refusals)))

    def expire(self, before: datetime, limit: int) -> Sequence[str]:
        """Give up the objects of up to `limit` studies complete since before then; their keys."""
        s, i, now = studies.c, instances.c, self._clock.now()
        while True:
            with self._database.write() as connection:
                uids = connection.scalars(
                    sa.select(s.study_instance_uid)
                    .where(s.completed_at < before, s.completed_at.is_not(None), s.expired_at.is_(None))
                    .order_by(s.completed_at)
                    .limit(limit)
                    .with_for_update()
                ).all()
                keys = connection.scalars(
                    instances.update()
                    .where(i.study_instance_uid.in_(uids), i.deleted_at.is_(None))
                    .values(deleted_at=now)
                    .returning(i.object_key)
                ).all()
                connection.execute(studies.update().where(s.study_instance_uid.in_(uids)).values(expired_at=now))
            if keys or not uids:
                return keys

    def old_refusals(self, before: datetime, limit: int) -> tuple[Sequence[int], Collection[str]]:
        """Up to `limit` refusals older than that, and what was kept in quarantine for them and no younger one."""
        r = refusals.c
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(r.id, r.quarantine_key).where(r.at < before).order_by(r.at).limit(limit)
            ).all()
            keys = {row.quarantine_key for row in rows} - {None}
            younger = sa.select(r.quarantine_key).where(r.quarantine_key.in_(keys), r.at >= before)
            return [row.id for row in rows], keys - set(connection.scalars(younger))

    def forget_refusals(self, ids: Sequence[int]) -> None:
        """Delete these refusals."""
        with self._database.write() as connection:
            connection.execute(refusals.delete().where(refusals.c.id.in_(ids)))
