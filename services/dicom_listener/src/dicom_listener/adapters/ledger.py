"""The ledger on SQL: one transaction per method, one row lock per study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection

from dicom_listener.adapters import tables
from dicom_listener.adapters.tables import fetched_priors, instances, outbox, studies
from dicom_listener.adapters.together import Together
from dicom_listener.domain.completeness import CompletionReason, OpenStudy
from dicom_listener.domain.header import merged
from dicom_listener.handlers.events import dicom_refused, study_completed, study_opened
from dicom_listener.ports import CountedRefusal, Recorded, StoredObject
from pipeline.clock import iso
from pipeline.database import Database, is_transient
from pipeline.errors import TransientError

OPEN, COMPLETE = "open", "complete"

# Built once: making a statement anew costs more than running it on an empty table.
_OF_INSTANCE = sa.select(instances.c.id, instances.c.sha256, instances.c.valid, instances.c.deleted_at).where(
    instances.c.sop_instance_uid == sa.bindparam("uid")
)
_LOCK_STUDY = sa.select(studies).where(studies.c.study_instance_uid == sa.bindparam("uid")).with_for_update()
_UPDATE_STUDY = studies.update().where(studies.c.study_instance_uid == sa.bindparam("uid"))
_INSERT_INSTANCE = instances.insert()
_MAKE_STUDY_SQLITE = sqlite_insert(studies).on_conflict_do_nothing()
_MAKE_STUDY_POSTGRESQL = postgresql_insert(studies).on_conflict_do_nothing()


class _LostRaceError(Exception):
    """Another association indexed the same SOP instance while this one waited for the study's row."""


class SqlLedger:
    """Implements `ports.Ledger`."""

    def __init__(self, database: Database, duplicate_policy: Literal["keep_first", "replace"]) -> None:
        self._database = database
        self._replace = duplicate_policy == "replace"
        self._together: Together[tuple[StoredObject, datetime], Recorded] = Together(
            self._record_all, is_of_all=is_transient
        )

    def record(self, stored: StoredObject, now: datetime) -> Recorded:
        """Index an object, in one transaction with those of other associations that wait at the same moment."""
        return self._together((stored, now))

    def record_each(self, objects: Sequence[tuple[StoredObject, datetime]]) -> Sequence[Recorded | Exception]:
        """The same for many: what became of each, or why it could not be indexed."""
        return self._together.each(objects)

    def _record_all(self, objects: Sequence[tuple[StoredObject, datetime]]) -> Sequence[Recorded]:
        """In one transaction. Concurrent writers of one study, other processes too, wait for each other on its row."""
        in_order = sorted(range(len(objects)), key=lambda n: objects[n][0].header.study_instance_uid)  # no deadlock
        for _attempt in range(3):
            try:
                with self._database.write() as connection:
                    outcomes = {n: self._record(connection, *objects[n]) for n in in_order}
            except (_LostRaceError, sa.exc.IntegrityError):
                if len(objects) > 1:
                    raise  # whose fault it is shows when each is tried alone
                continue  # the other one has committed, so its rows are visible now
            return [outcomes[n] for n in range(len(objects))]
        raise TransientError("the same SOP instance keeps arriving on several associations")

    def _record(self, connection: Connection, stored: StoredObject, now: datetime) -> Recorded:
        rows = self._rows(connection, stored)
        known = self._known(connection, stored, now, rows)
        if known is not None:
            return known
        study = self._lock_study(connection, stored, now)
        if not self._database.is_sqlite:  # SQLite's transaction has locked everybody else out since it began
            rows = self._rows(connection, stored)
            if self._known(connection, stored, now, rows) is not None:
                raise _LostRaceError
        version = study.version if study.state == OPEN else study.version + 1
        within = self._invalidate(connection, stored) if rows else []
        self._insert_instance(connection, stored, now, version)
        same_study = sum(uid == stored.header.study_instance_uid for uid in within)
        self._touch_study(connection, study, stored, now, added=1 - same_study)
        return Recorded.REPLACED if within else Recorded.NEW

    @staticmethod
    def _invalidate(connection: Connection, stored: StoredObject) -> Sequence[str]:
        """Make room for a new valid row; the studies that the former one counted in."""
        replaced = connection.scalars(
            instances.update()
            .where(instances.c.sop_instance_uid == stored.header.sop_instance_uid, instances.c.valid)
            .values(valid=False)
            .returning(instances.c.study_instance_uid)
        ).all()
        # Bytes that were valid before, and then replaced, have a row already.
        connection.execute(
            instances.delete().where(
                instances.c.sop_instance_uid == stored.header.sop_instance_uid, instances.c.sha256 == stored.sha256
            )
        )
        return replaced

    @staticmethod
    def _rows(connection: Connection, stored: StoredObject) -> Sequence[sa.Row[*tuple[Any, ...]]]:
        """What is indexed under the SOP Instance UID."""
        return connection.execute(_OF_INSTANCE, {"uid": stored.header.sop_instance_uid}).all()

    def _known(
        self, connection: Connection, stored: StoredObject, now: datetime, rows: Sequence[sa.Row[*tuple[Any, ...]]]
    ) -> Recorded | None:
        """The outcome if this SOP instance is there and stays as it is; None if it is to be entered as valid.

        What retention has deleted keeps nothing else out: only an object that stands is the first that is kept.
        """
        same = next((row for row in rows if row.sha256 == stored.sha256), None)
        first_stays = not self._replace and any(row.valid and row.deleted_at is None for row in rows)
        if same is not None and (same.valid or first_stays):
            connection.execute(
                instances.update()
                .where(instances.c.id == same.id)
                .values(duplicates=instances.c.duplicates + 1, deleted_at=None)
            )
            if same.deleted_at is not None:  # its object stands again
                self._retain(connection, stored, now)
            return Recorded.DUPLICATE
        if first_stays:
            self._lock_study(connection, stored, now)  # it may name another study than the first
            self._insert_instance(connection, stored, now, version=None)
            self._retain(connection, stored, now)
            return Recorded.KEPT_BESIDE
        return None

    @staticmethod
    def _retain(connection: Connection, stored: StoredObject, now: datetime) -> None:
        """An object stands in a study that expired, or that never was complete: it is kept as long as a new one."""
        s = studies.c
        connection.execute(
            studies.update()
            .where(
                s.study_instance_uid == stored.header.study_instance_uid,
                s.state != OPEN,
                s.expired_at.is_not(None) | s.completed_at.is_(None),
            )
            .values(expired_at=None, completed_at=now)
        )

    def _insert_instance(
        self, connection: Connection, stored: StoredObject, now: datetime, version: int | None
    ) -> None:
        header = stored.header
        connection.execute(
            _INSERT_INSTANCE,
            {
                "sop_instance_uid": header.sop_instance_uid,
                "study_instance_uid": header.study_instance_uid,
                "series_instance_uid": header.series_instance_uid,
                "sop_class_uid": header.sop_class_uid,
                "transfer_syntax_uid": stored.transfer_syntax_uid,
                "study_version": version,
                "valid": version is not None,
                "object_key": stored.object_key,
                "sha256": stored.sha256,
                "size_bytes": stored.size_bytes,
                "received_at": now,
                "calling_ae_title": stored.peer.calling_ae_title,
                "duplicates": 0,
                "fields": header.instance,
            },
        )

    def _lock_study(self, connection: Connection, stored: StoredObject, now: datetime) -> sa.Row[Any]:
        """The study's row, made if missing (as complete version 0), locked until the transaction ends."""
        study_instance_uid = stored.header.study_instance_uid
        study = connection.execute(_LOCK_STUDY, {"uid": study_instance_uid}).one_or_none()
        if study is not None:
            return study
        connection.execute(
            _MAKE_STUDY_SQLITE if self._database.is_sqlite else _MAKE_STUDY_POSTGRESQL,
            {
                "study_instance_uid": study_instance_uid,
                "version": 0,
                "state": COMPLETE,
                "opened_at": now,
                "first_received_at": now,
                "last_received_at": now,
                "instance_count": 0,
                "fields": stored.header.study,
                "calling_ae_titles": [],
                "called_ae_title": stored.peer.called_ae_title,
            },
        )
        return connection.execute(_LOCK_STUDY, {"uid": study_instance_uid}).one()

    def _touch_study(
        self, connection: Connection, study: sa.Row[Any], stored: StoredObject, now: datetime, added: int
    ) -> None:
        """Enter one more object; opens the next version, with its event, if the study counted as complete."""
        header = stored.header
        titles = list(study.calling_ae_titles)
        if stored.peer.calling_ae_title not in titles:
            titles.append(stored.peer.calling_ae_title)
        values: dict[str, Any] = {
            "last_received_at": now,
            "released_at": None,
            "instance_count": study.instance_count + added,
            "calling_ae_titles": titles,
            "called_ae_title": stored.peer.called_ae_title,
        }
        if study.state == OPEN:
            fields = merged(study.fields, header.study)  # the first object of a version speaks, others fill its blanks
        else:
            fields = merged(header.study, study.fields)  # a late one may bring corrected identifiers
            version = study.version + 1
            values |= {"version": version, "state": OPEN, "reason": None, "opened_at": now}
            values |= {"completed_at": None, "expired_at": None}
            outbox.add(
                connection,
                study_opened(header.study_instance_uid, version, stored.peer.calling_ae_title, fields, now),
            )
        values |= {
            "fields": fields,
            "accession_number": fields["order"]["accession_number"],
            "patient_id": fields["patient"]["patient_id"],
        }
        connection.execute(_UPDATE_STUDY, {"uid": header.study_instance_uid, **values})

    def refuse(self, refusals: Sequence[CountedRefusal], now: datetime) -> None:
        """Write down refusals, with an event for each."""
        with self._database.write() as connection:
            for each in refusals:
                refusal = each.refusal
                connection.execute(
                    tables.refusals.insert().values(
                        at=each.last_at,
                        first_at=each.first_at,
                        count=each.count,
                        scope=refusal.scope,
                        reason=refusal.reason,
                        status=refusal.status,
                        answer=refusal.answer,
                        text=refusal.text,
                        calling_ae_title=refusal.peer.calling_ae_title,
                        called_ae_title=refusal.peer.called_ae_title,
                        address=refusal.peer.address,
                        accession_number=refusal.accession_number,
                        sop_class_uid=refusal.sop_class_uid,
                        quarantine_key=refusal.quarantine_key,
                    )
                )
                outbox.add(connection, dicom_refused(each, now))

    def open_studies(self) -> Sequence[OpenStudy]:
        """All studies that are being received."""
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(
                    studies.c.study_instance_uid,
                    studies.c.version,
                    studies.c.opened_at,
                    studies.c.last_received_at,
                    studies.c.released_at,
                    studies.c.instance_count,
                ).where(studies.c.state == sa.literal_column("'open'"))  # as text, so that the partial index is used
            ).all()
        return [OpenStudy(*row) for row in rows]

    def mark_released(self, released: Mapping[str, datetime]) -> None:
        """Enter when the last association of each study was released."""
        with self._database.write() as connection:
            for uid, at in released.items():
                connection.execute(
                    studies.update()
                    .where(studies.c.study_instance_uid == uid, studies.c.state == OPEN)
                    .values(released_at=at)
                )

    def mark_abandoned(self, now: datetime) -> int:
        """At start: associations that died with the earlier process count as released now."""
        with self._database.write() as connection:
            result = connection.execute(
                studies.update().where(studies.c.state == OPEN, studies.c.released_at.is_(None)).values(released_at=now)
            )
        return result.rowcount

    def complete(self, study: OpenStudy, reason: CompletionReason, now: datetime) -> bool:
        """Close the version and write its event in one transaction."""
        with self._database.write() as connection:
            row = connection.execute(
                sa.select(studies).where(studies.c.study_instance_uid == study.study_instance_uid).with_for_update()
            ).one()
            if (row.state, row.version, row.instance_count, row.last_received_at) != (
                OPEN,
                study.version,
                study.instance_count,
                study.last_received_at,
            ):
                return False  # an object came in between
            objects = connection.execute(
                sa.select(instances)
                .where(
                    instances.c.study_instance_uid == study.study_instance_uid,
                    instances.c.valid,
                    instances.c.deleted_at.is_(None),
                )
                .order_by(instances.c.id)
            ).all()
            received: dict[str, Any] = {
                "calling_ae_titles": row.calling_ae_titles,
                "called_ae_title": row.called_ae_title,
                "first_received_at": iso(row.first_received_at),
                "last_received_at": iso(row.last_received_at),
            }
            prior = sa.select(fetched_priors).where(fetched_priors.c.study_instance_uid == study.study_instance_uid)
            if connection.execute(prior).first() is not None:
                received["fetched_as_prior"] = True
            event = study_completed(
                study.study_instance_uid,
                study.version,
                reason,
                row.fields,
                received,
                [_instance(each) for each in objects],
                now,
            )
            outbox.add(connection, event)
            connection.execute(
                studies.update()
                .where(studies.c.study_instance_uid == study.study_instance_uid)
                .values(state=COMPLETE, reason=reason.value, completed_at=now)
            )
        return True


def _instance(row: sa.Row[Any]) -> dict[str, Any]:
    """One instance as the event lists it."""
    return {
        "sop_instance_uid": row.sop_instance_uid,
        "sop_class_uid": row.sop_class_uid,
        "series_instance_uid": row.series_instance_uid,
        "transfer_syntax_uid": row.transfer_syntax_uid,
        "object_ref": row.object_key,
        "sha256": row.sha256,
        "size_bytes": row.size_bytes,
        "received_at": iso(row.received_at),
        **row.fields,
    }
