"""Studies, facts, images, dead letters, inbox and the generation of the read model."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "studies",
        sa.Column("study_instance_uid", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason_code", sa.Text),
        sa.Column("reason_text", sa.Text),
        sa.Column("next_attempt_at", _MOMENT),
        sa.Column("accession_number", sa.Text),
        sa.Column("patient_id", sa.Text),
        sa.Column("description", sa.Text),
        sa.Column("flags", sa.JSON, nullable=False),
        sa.Column("received_at", _MOMENT, nullable=False),
        sa.Column("updated_at", _MOMENT, nullable=False),
        sa.Column("projected_at", _MOMENT, nullable=False),
    )
    newest = ["received_at", "study_instance_uid"]
    op.create_index("studies_received", "studies", newest)
    op.create_index("studies_accession", "studies", ["accession_number", *newest])
    op.create_index("studies_patient", "studies", ["patient_id", *newest])
    op.create_index("studies_state", "studies", ["state", *newest])
    op.create_index("studies_projected", "studies", ["projected_at"])
    waiting = sa.text("state = 'generated' AND reason_code IS NOT NULL")
    op.create_index("studies_waiting", "studies", newest, sqlite_where=waiting, postgresql_where=waiting)
    op.create_table(
        "facts",
        sa.Column("event_id", sa.Text, primary_key=True),
        sa.Column("study_instance_uid", sa.Text, nullable=False),
        sa.Column("version", sa.Integer),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
    )
    op.create_index("facts_study", "facts", ["study_instance_uid"])
    op.create_table(
        "images",
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
        sa.Column("instance_number", sa.Integer),
    )
    op.create_table(
        "dead_letters",
        sa.Column("event_id", sa.Text, primary_key=True),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("consumer", sa.Text, nullable=False),
        sa.Column("error_code", sa.Text, nullable=False),
        sa.Column("error_message", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
    )
    op.create_index("dead_letters_at", "dead_letters", ["at", "event_id"])
    op.create_table(
        "generation",
        sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("number", sa.Integer, nullable=False),
    )
    op.create_table(
        "inbox",
        sa.Column("consumer", sa.Text, primary_key=True),
        sa.Column("event_id", sa.Text, primary_key=True),
        sa.Column("handled_at", _MOMENT, nullable=False),
    )
    op.create_index("ix_inbox_handled_at", "inbox", ["handled_at"])


def downgrade() -> None:
    for table in ("inbox", "generation", "dead_letters", "images", "facts", "studies"):
        op.drop_table(table)
