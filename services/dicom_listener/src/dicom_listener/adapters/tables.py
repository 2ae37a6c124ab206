"""The listener's tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from pipeline.outbox import Outbox


class UtcDateTime(sa.TypeDecorator[datetime]):
    """Aware times on both databases: SQLite forgets the zone, which is always UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """To UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        """With its zone."""
        if not isinstance(value, datetime):
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = sa.MetaData()
outbox = Outbox(metadata)

_identity = sa.BigInteger().with_variant(sa.Integer, "sqlite")

studies = sa.Table(
    "studies",
    metadata,
    sa.Column("study_instance_uid", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # open | complete
    sa.Column("reason", sa.Text),
    sa.Column("opened_at", UtcDateTime, nullable=False),
    sa.Column("first_received_at", UtcDateTime, nullable=False),
    sa.Column("last_received_at", UtcDateTime, nullable=False),
    sa.Column("released_at", UtcDateTime),
    sa.Column("completed_at", UtcDateTime),
    sa.Column("expired_at", UtcDateTime),  # its objects are deleted
    sa.Column("instance_count", sa.Integer, nullable=False),
    sa.Column("accession_number", sa.Text, index=True),
    sa.Column("patient_id", sa.Text, index=True),
    sa.Column("fields", sa.JSON, nullable=False),
    sa.Column("calling_ae_titles", sa.JSON, nullable=False),
    sa.Column("called_ae_title", sa.Text, nullable=False),
    sa.Index(
        "studies_expiring",
        "completed_at",
        sqlite_where=sa.text("completed_at IS NOT NULL AND expired_at IS NULL"),
        postgresql_where=sa.text("completed_at IS NOT NULL AND expired_at IS NULL"),
    ),
    sa.Index(
        "studies_open",
        "study_instance_uid",
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    ),
)

instances = sa.Table(
    "instances",
    metadata,
    sa.Column("id", _identity, primary_key=True, autoincrement=True),
    sa.Column("sop_instance_uid", sa.Text, nullable=False),
    sa.Column("study_instance_uid", sa.Text, nullable=False),
    sa.Column("series_instance_uid", sa.Text, nullable=False),
    sa.Column("sop_class_uid", sa.Text, nullable=False),
    sa.Column("transfer_syntax_uid", sa.Text, nullable=False),
    sa.Column("study_version", sa.Integer),  # null: kept beside a valid one, belongs to no version
    sa.Column("valid", sa.Boolean, nullable=False),
    sa.Column("object_key", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("received_at", UtcDateTime, nullable=False),
    sa.Column("calling_ae_title", sa.Text, nullable=False),
    sa.Column("duplicates", sa.Integer, nullable=False),
    sa.Column("fields", sa.JSON, nullable=False),
    sa.Column("deleted_at", UtcDateTime),  # the object is gone; the row remembers that it was there
    sa.UniqueConstraint("sop_instance_uid", "sha256", name="instances_content"),
    sa.Index("instances_of_study", "study_instance_uid"),
    sa.Index("instances_object", "object_key"),
    sa.Index(
        "instances_valid",
        "sop_instance_uid",
        unique=True,
        sqlite_where=sa.text("valid = 1"),
        postgresql_where=sa.text("valid"),
    ),
)

refusals = sa.Table(
    "refusals",
    metadata,
    sa.Column("id", _identity, primary_key=True, autoincrement=True),
    sa.Column("at", UtcDateTime, nullable=False, index=True),
    sa.Column("first_at", UtcDateTime, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("status", sa.Integer),  # DIMSE status, where one was sent
    sa.Column("answer", sa.Text),  # the same, or the three numbers of a rejected association
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("calling_ae_title", sa.Text, nullable=False),
    sa.Column("called_ae_title", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("accession_number", sa.Text),
    sa.Column("sop_class_uid", sa.Text),
    sa.Column("quarantine_key", sa.Text),
    sa.Index(
        "refusals_quarantined",
        "quarantine_key",
        sqlite_where=sa.text("quarantine_key IS NOT NULL"),
        postgresql_where=sa.text("quarantine_key IS NOT NULL"),
    ),
)

commitments = sa.Table(
    "commitments",
    metadata,
    sa.Column("id", _identity, primary_key=True, autoincrement=True),
    sa.Column("transaction_uid", sa.Text, nullable=False),
    sa.Column("calling_ae_title", sa.Text, nullable=False),
    sa.Column("called_ae_title", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("requested", sa.JSON, nullable=False),  # [[SOP Class UID, SOP Instance UID], ...]
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("next_attempt_at", UtcDateTime, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("done_at", UtcDateTime, index=True),
    sa.Column("outcome", sa.Text),  # committed | failures | undeliverable
    sa.Index(
        "commitments_waiting",
        "next_attempt_at",
        sqlite_where=sa.text("done_at IS NULL"),
        postgresql_where=sa.text("done_at IS NULL"),
    ),
)

fetches = sa.Table(
    "fetches",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("wish_key", sa.Text, nullable=False),
    sa.Column("study_instance_uid", sa.Text),
    sa.Column("accession_number", sa.Text),
    sa.Column("priors", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # queued | running | done | failed
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text),  # of the last failure
    sa.Column("text", sa.Text),
    sa.Column("shares", sa.JSON, nullable=False),  # [{study_instance_uid, role, expected, held}, ...]
    sa.Column("created_at", UtcDateTime, nullable=False, index=True),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("next_attempt_at", UtcDateTime),
    sa.Column("done_at", UtcDateTime, index=True),
    sa.Index(
        "fetches_open",
        "wish_key",
        unique=True,
        sqlite_where=sa.text("done_at IS NULL"),
        postgresql_where=sa.text("done_at IS NULL"),
    ),
)

fetched_priors = sa.Table(
    "fetched_priors",
    metadata,
    sa.Column("study_instance_uid", sa.Text, primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
)
