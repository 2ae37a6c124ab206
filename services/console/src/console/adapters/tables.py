"""The read model's tables; the migrations create the same."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Dialect

from pipeline.consume import Inbox


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """An aware time in UTC on both databases (SQLite keeps no zone)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """In UTC, so that SQLite's texts compare as times do."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Aware again."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = sa.MetaData()
inbox = Inbox(metadata)

studies = sa.Table(
    "studies",
    metadata,
    sa.Column("study_instance_uid", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason_code", sa.Text),
    sa.Column("reason_text", sa.Text),
    sa.Column("next_attempt_at", UtcDateTime),
    sa.Column("accession_number", sa.Text),
    sa.Column("patient_id", sa.Text),
    sa.Column("description", sa.Text),
    sa.Column("flags", sa.JSON, nullable=False),
    sa.Column("received_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    # When the line was last written here, for live pages: the one column that depends on the order of arrival.
    sa.Column("projected_at", UtcDateTime, nullable=False),
    # Each search is an equality and the newest first, so that a page costs the same with a million studies as with ten.
    sa.Index("studies_received", "received_at", "study_instance_uid"),
    sa.Index("studies_accession", "accession_number", "received_at", "study_instance_uid"),
    sa.Index("studies_patient", "patient_id", "received_at", "study_instance_uid"),
    sa.Index("studies_state", "state", "received_at", "study_instance_uid"),
    sa.Index("studies_projected", "projected_at"),
    # Delivery is waited for: few rows at any time.
    sa.Index(
        "studies_waiting",
        "received_at",
        "study_instance_uid",
        sqlite_where=sa.text("state = 'generated' AND reason_code IS NOT NULL"),
        postgresql_where=sa.text("state = 'generated' AND reason_code IS NOT NULL"),
    ),
)

facts = sa.Table(
    "facts",
    metadata,
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("study_instance_uid", sa.Text, nullable=False),
    sa.Column("version", sa.Integer),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Index("facts_study", "study_instance_uid"),
)

images = sa.Table(
    "images",
    metadata,
    sa.Column("study_instance_uid", sa.Text, primary_key=True),
    sa.Column("sop_instance_uid", sa.Text, primary_key=True),
    sa.Column("series_instance_uid", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("object_ref", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("modality", sa.Text),
    sa.Column("view_position", sa.Text),
    sa.Column("photometric_interpretation", sa.Text),
    sa.Column("rows", sa.Integer),
    sa.Column("columns", sa.Integer),
    sa.Column("has_pixel_data", sa.Boolean, nullable=False),
    sa.Column("instance_number", sa.BigInteger),  # an integer string has twelve characters
)

dead_letters = sa.Table(
    "dead_letters",
    metadata,
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("consumer", sa.Text, nullable=False),
    sa.Column("error_code", sa.Text, nullable=False),
    sa.Column("error_message", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Index("dead_letters_at", "at", "event_id"),
)

refusals = sa.Table(
    "refusals",
    metadata,
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("first_at", UtcDateTime, nullable=False),
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("reason_code", sa.Text, nullable=False),
    sa.Column("reason_text", sa.Text, nullable=False),
    sa.Column("status", sa.Text),
    sa.Column("calling_ae_title", sa.Text, nullable=False),
    sa.Column("called_ae_title", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("accession_number", sa.Text),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Index("refusals_at", "at", "event_id"),
    sa.Index("refusals_calling", "calling_ae_title", "at", "event_id"),
    sa.Index("refusals_reason", "reason_code", "at", "event_id"),
)

generation = sa.Table(
    "generation",
    metadata,
    sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),  # always 1: one row
    sa.Column("number", sa.Integer, nullable=False),
)
