"""First tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_identity = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_time = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", _identity, primary_key=True, autoincrement=True),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("created_at", _time, nullable=False),
        sa.Column("published_at", _time),
    )
    pending = sa.text("published_at IS NULL")
    op.create_index("outbox_pending", "outbox", ["id"], sqlite_where=pending, postgresql_where=pending)
    op.create_index("outbox_published", "outbox", ["published_at"])

    op.create_table(
        "studies",
        sa.Column("study_instance_uid", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("opened_at", _time, nullable=False),
        sa.Column("first_received_at", _time, nullable=False),
        sa.Column("last_received_at", _time, nullable=False),
        sa.Column("released_at", _time),
        sa.Column("completed_at", _time),
        sa.Column("instance_count", sa.Integer, nullable=False),
        sa.Column("accession_number", sa.Text),
        sa.Column("patient_id", sa.Text),
        sa.Column("fields", sa.JSON, nullable=False),
        sa.Column("calling_ae_titles", sa.JSON, nullable=False),
        sa.Column("called_ae_title", sa.Text, nullable=False),
    )
    op.create_index("ix_studies_accession_number", "studies", ["accession_number"])
    op.create_index("ix_studies_patient_id", "studies", ["patient_id"])
    being_received = sa.text("state = 'open'")
    op.create_index(
        "studies_open", "studies", ["study_instance_uid"], sqlite_where=being_received, postgresql_where=being_received
    )

    op.create_table(
        "instances",
        sa.Column("id", _identity, primary_key=True, autoincrement=True),
        sa.Column("sop_instance_uid", sa.Text, nullable=False),
        sa.Column("study_instance_uid", sa.Text, nullable=False),
        sa.Column("series_instance_uid", sa.Text, nullable=False),
        sa.Column("sop_class_uid", sa.Text, nullable=False),
        sa.Column("transfer_syntax_uid", sa.Text, nullable=False),
        sa.Column("study_version", sa.Integer),
        sa.Column("valid", sa.Boolean, nullable=False),
        sa.Column("object_key", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("received_at", _time, nullable=False),
        sa.Column("calling_ae_title", sa.Text, nullable=False),
        sa.Column("duplicates", sa.Integer, nullable=False),
        sa.Column("fields", sa.JSON, nullable=False),
        sa.UniqueConstraint("sop_instance_uid", "sha256", name="instances_content"),
    )
    op.create_index("instances_of_study", "instances", ["study_instance_uid"])
    op.create_index(
        "instances_valid",
        "instances",
        ["sop_instance_uid"],
        unique=True,
        sqlite_where=sa.text("valid = 1"),
        postgresql_where=sa.text("valid"),
    )

    op.create_table(
        "refusals",
        sa.Column("id", _identity, primary_key=True, autoincrement=True),
        sa.Column("at", _time, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("calling_ae_title", sa.Text, nullable=False),
        sa.Column("called_ae_title", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("accession_number", sa.Text),
        sa.Column("sop_class_uid", sa.Text),
        sa.Column("quarantine_key", sa.Text),
    )
    op.create_index("ix_refusals_at", "refusals", ["at"])
