"""The schedule of deliveries in SQL. A lease on the row is the lock of a study, over processes and machines."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from fhir_writer.adapters.tables import deliveries as d
from fhir_writer.adapters.tables import skips, studies
from fhir_writer.ports import Change, Job, Withdrawn
from pipeline.database import Database
from pipeline.events import Event
from pipeline.outbox import Outbox

STATES = ("pending", "delivered", "parked", "withdrawn")


def _utc(value: datetime | None) -> datetime | None:
    """SQLite gives times back without a zone; all are UTC."""
    return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def _one_at_a_time(connection: Connection, uid: str) -> None:
    """Events of one study on two topics may be handled at once where there is no row yet that could be locked."""
    if connection.dialect.name != "sqlite":  # which has one writer at a time anyway
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(uid, 0))))


class SqlDeliveries:
    """Implements `ports.Deliveries`; `lease_s` is how long a silent process keeps what it took."""

    def __init__(self, database: Database, outbox: Outbox, lease_s: float) -> None:
        self._database = database
        self._outbox = outbox
        self._lease = timedelta(seconds=lease_s)
        self._held: set[str] = set()

    def keep_study(self, connection: Connection, version: int, kept: Mapping[str, Any], now: datetime) -> None:
        """Keep one version of a study; the same version again replaces it."""
        uid = kept["study_instance_uid"]
        mine = (studies.c.study_instance_uid == uid) & (studies.c.study_version == version)
        updated = connection.execute(studies.update().where(mine).values(kept=dict(kept), received_at=now))
        if updated.rowcount == 0:
            connection.execute(
                studies.insert().values(study_instance_uid=uid, study_version=version, kept=dict(kept), received_at=now)
            )
        connection.execute(
            d.update()
            .where(
                d.c.study_instance_uid == uid,
                d.c.study_version == version,
                d.c.state == "pending",
                d.c.reason_code == "waiting_for_study",
            )
            .values(next_attempt_at=now)
        )

    def schedule(self, connection: Connection, event: Event, now: datetime) -> bool:
        """Enter or renew the row of the study."""
        data = event.data
        uid, version = data["study_instance_uid"], data["study_version"]
        values = {
            "study_version": version,
            "job_id": data["job_id"],
            "report": dict(data),
            "written_at": event.time,
            "traceparent": event.traceparent,
            "state": "pending",
            "next_attempt_at": now,
            "attempts": 0,
            "reason_code": None,
            "reason_text": None,
            "http_status": None,
            "operation_outcome": None,
            "outage_told": False,
            "released": False,
            "patient_wait_since": None,
            "updated_at": now,
        }
        _one_at_a_time(connection, uid)
        skipped = connection.scalar(sa.select(skips.c.study_version).where(skips.c.study_instance_uid == uid))
        if skipped is not None and version < skipped:
            return False
        current = connection.execute(
            sa.select(d.c.study_version).where(d.c.study_instance_uid == uid).with_for_update()
        ).first()
        if current is None:
            connection.execute(d.insert().values(study_instance_uid=uid, revision=1, **values))
            return True
        if version < current.study_version:
            return False
        connection.execute(d.update().where(d.c.study_instance_uid == uid).values(revision=d.c.revision + 1, **values))
        return True

    def withdraw(self, connection: Connection, uid: str, version: int, now: datetime) -> Withdrawn | None:
        """Remember the version, and take its predecessors' draft back with its text."""
        if version == 1:
            return None
        _one_at_a_time(connection, uid)
        self._leave_aside_before(connection, uid, version, now)
        row = connection.execute(
            sa.select(d.c.study_version, d.c.job_id, d.c.delivered_version)
            .where(d.c.study_instance_uid == uid, d.c.study_version < version, d.c.state.in_(("pending", "parked")))
            .with_for_update()
        ).first()
        if row is None:
            return None
        # A draft that is there already and was only to be tried again stays what it is.
        there = row.delivered_version == row.study_version
        changed: dict[str, Any] = {"state": "delivered"} if there else {"state": "withdrawn", "report": {}}
        connection.execute(
            d.update()
            .where(d.c.study_instance_uid == uid)
            .values(
                **changed,
                next_attempt_at=None,
                reason_code=None,
                reason_text=None,
                http_status=None,
                operation_outcome=None,
                revision=d.c.revision + 1,
                updated_at=now,
            )
        )
        return None if there else Withdrawn(row.study_version, row.job_id)

    @staticmethod
    def _leave_aside_before(connection: Connection, uid: str, version: int, now: datetime) -> None:
        known = connection.scalar(sa.select(skips.c.study_version).where(skips.c.study_instance_uid == uid))
        if known is None:
            connection.execute(skips.insert().values(study_instance_uid=uid, study_version=version, decided_at=now))
        elif known < version:
            connection.execute(
                skips.update().where(skips.c.study_instance_uid == uid).values(study_version=version, decided_at=now)
            )

    def tell(self, connection: Connection, event: Event) -> None:
        """By the outbox."""
        self._outbox.add(connection, event)

    def claim(self, now: datetime, limit: int) -> list[Job]:
        """Take due rows; on PostgreSQL those that another process is taking are skipped."""
        due = (
            sa.select(d.c.study_instance_uid)
            .where(
                d.c.next_attempt_at <= now,
                d.c.state.not_in(("delivered", "withdrawn")),
                sa.or_(d.c.leased_until.is_(None), d.c.leased_until < now),
            )
            .order_by(d.c.next_attempt_at)
            .limit(limit)
        )
        with self._database.read() as connection:  # most looks find nothing: no write lock for those
            if connection.execute(due.limit(1)).first() is None:
                return []
        jobs = []
        with self._database.write() as connection:
            for (uid,) in connection.execute(due.with_for_update(skip_locked=True)).all():
                lease_id = str(uuid.uuid4())
                connection.execute(
                    d.update()
                    .where(d.c.study_instance_uid == uid)
                    .values(lease_id=lease_id, leased_until=now + self._lease)
                )
                jobs.append(self._job(connection, uid, lease_id))
        self._held.update(job.lease_id for job in jobs)
        return jobs

    def _job(self, connection: Connection, uid: str, lease_id: str) -> Job:
        row = connection.execute(
            sa.select(d, studies.c.kept)
            .join(
                studies,
                (studies.c.study_instance_uid == d.c.study_instance_uid)
                & (studies.c.study_version == d.c.study_version),
                isouter=True,
            )
            .where(d.c.study_instance_uid == uid)
        ).one()
        written_at = _utc(row.written_at)
        assert written_at is not None
        return Job(
            study_instance_uid=uid,
            study_version=row.study_version,
            job_id=row.job_id,
            report=row.report,
            written_at=written_at,
            study=row.kept,
            traceparent=row.traceparent,
            state=row.state,
            reason_code=row.reason_code,
            attempts=row.attempts,
            outage_told=row.outage_told,
            released=row.released,
            patient_wait_since=_utc(row.patient_wait_since),
            revision=row.revision,
            lease_id=lease_id,
        )

    def settle(self, job: Job, change: Change, event: Event | None, now: datetime) -> None:
        """Write an attempt's end, its event and the end of the lease in one transaction."""
        done: dict[str, Any] = {"lease_id": None, "leased_until": None, "updated_at": now}
        if change.delivered is not None:
            done |= {
                "fhir_id": change.delivered.resource_id,
                "fhir_version": change.delivered.resource_version,
                "delivered_version": job.study_version,
            }
        schedule = {
            "state": change.state,
            "next_attempt_at": change.next_attempt_at,
            "attempts": change.attempts,
            "reason_code": change.reason_code,
            "reason_text": change.reason_text,
            "http_status": change.http_status,
            "operation_outcome": change.operation_outcome,
            "outage_told": change.outage_told,
            "patient_wait_since": change.patient_wait_since,
        }
        mine = (d.c.study_instance_uid == job.study_instance_uid) & (d.c.lease_id == job.lease_id)
        with self._database.write() as connection:
            current = connection.execute(
                d.update().where(mine, d.c.revision == job.revision).values(**done, **schedule)
            ).rowcount
            if not current:
                # A newer draft came (its schedule stays), or the lease was lost (its new holder writes instead).
                held = connection.execute(d.update().where(mine).values(**done)).rowcount
                if held and change.delivered is not None:  # withdrawn too late: it is there
                    late = (d.c.state == "withdrawn") & (d.c.study_version == job.study_version)
                    connection.execute(
                        d.update()
                        .where(d.c.study_instance_uid == job.study_instance_uid, late)
                        .values(state="delivered", report=dict(job.report))
                    )
                event = event if held and change.delivered is not None else None
            if event is not None:
                self._outbox.add(connection, event)

    def still_due(self, job: Job) -> bool:
        """Of the lease only whether another has taken it counts, not the clocks."""
        mine = (d.c.study_instance_uid == job.study_instance_uid) & (d.c.lease_id == job.lease_id)
        with self._database.read() as connection:
            return (
                connection.execute(sa.select(d.c.state).where(mine, d.c.revision == job.revision)).first() is not None
            )

    def let_go(self, job: Job) -> None:
        """Renew its lease no more."""
        self._held.discard(job.lease_id)

    def wake_outage(self, now: datetime) -> None:
        """Bring forward what waited for the EHR."""
        with self._database.write() as connection:
            connection.execute(
                d.update()
                .where(d.c.state == "pending", d.c.outage_told.is_(True), d.c.next_attempt_at > now)
                .values(next_attempt_at=now)
            )

    def renew_leases(self, now: datetime) -> None:
        """Keep what this process works on; called a few times within a lease."""
        held = list(self._held)
        if held:
            with self._database.write() as connection:
                connection.execute(d.update().where(d.c.lease_id.in_(held)).values(leased_until=now + self._lease))

    def drop_all_leases(self) -> None:
        """For a database that only this process can have open: what a killed predecessor held is free at once."""
        with self._database.write() as connection:
            connection.execute(d.update().where(d.c.lease_id.is_not(None)).values(lease_id=None, leased_until=None))

    def replay(self, now: datetime, uid: str | None = None, reason: str | None = None) -> int:
        """Make one study's delivery, or all parked for `reason`, due now; returns how many rows."""
        chosen = (
            d.c.study_instance_uid == uid
            if uid is not None
            else ((d.c.state == "parked") & (d.c.reason_code == reason))
        )
        with self._database.write() as connection:
            return connection.execute(
                d.update()
                .where(chosen, d.c.state != "withdrawn")
                .values(
                    state="pending",
                    next_attempt_at=now,
                    attempts=0,
                    outage_told=False,
                    released=True,
                    revision=d.c.revision + 1,
                    updated_at=now,
                )
            ).rowcount

    def expire(self, before: datetime, limit: int, now: datetime) -> int:
        """Delete up to `limit` deliveries that ended before then, with what was kept of their studies; how many.

        That an older version comes too late is remembered.
        """
        gone = 0
        with self._database.write() as connection:
            for state in ("delivered", "withdrawn"):
                ended = (d.c.state == state) & (d.c.updated_at < before)
                old = sa.select(d.c.study_instance_uid, d.c.study_version).where(ended).order_by(d.c.updated_at)
                for uid, version in connection.execute(old.limit(limit - gone)).all():
                    _one_at_a_time(connection, uid)
                    if connection.execute(d.delete().where(d.c.study_instance_uid == uid, ended)).rowcount == 0:
                        continue  # a newer draft came at this moment
                    gone += 1
                    kept = (studies.c.study_instance_uid == uid) & (studies.c.study_version <= version)
                    connection.execute(studies.delete().where(kept))
                    if version > 1:
                        self._leave_aside_before(connection, uid, version, now)
        return gone

    def listed(self, state: str | None, limit: int) -> list[dict[str, Any]]:
        """Deliveries for people, the latest changed first; without the report's text."""
        columns = [c for c in d.c if c.name not in ("report", "traceparent", "lease_id", "leased_until", "revision")]
        found: list[dict[str, Any]] = []
        with self._database.read() as connection:
            for each in STATES if state is None else [state]:  # one by one, as the index has them
                newest = sa.select(*columns).where(d.c.state == each).order_by(d.c.updated_at.desc()).limit(limit)
                found += [dict(row._mapping) for row in connection.execute(newest)]
        return sorted(found, key=lambda row: row["updated_at"], reverse=True)[:limit]

    def counts(self, states: Sequence[str] = STATES) -> dict[str, int]:
        """Rows by state. Every row of the state is looked at: those that are delivered are many."""
        query = sa.select(d.c.state, sa.func.count()).where(d.c.state.in_(states)).group_by(d.c.state)
        with self._database.read() as connection:
            return dict.fromkeys(states, 0) | {row[0]: row[1] for row in connection.execute(query)}
