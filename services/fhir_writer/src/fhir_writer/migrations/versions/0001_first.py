"""The tables of the first version."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "studies",
        sa.Column("study_instance_uid", sa.Text, primary_key=True),
        sa.Column("study_version", sa.Integer, primary_key=True),
        sa.Column("kept", sa.JSON, nullable=False),
        sa.Column("received_at", _TIME, nullable=False),
    )
    op.create_table(
        "deliveries",
        sa.Column("study_instance_uid", sa.Text, primary_key=True),
        sa.Column("study_version", sa.Integer, nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
        sa.Column("written_at", _TIME, nullable=False),
        sa.Column("traceparent", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("next_attempt_at", _TIME),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("reason_code", sa.Text),
        sa.Column("reason_text", sa.Text),
        sa.Column("http_status", sa.Integer),
        sa.Column("operation_outcome", sa.Text),
        sa.Column("outage_told", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("released", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("patient_wait_since", _TIME),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.Column("lease_id", sa.Text),
        sa.Column("leased_until", _TIME),
        sa.Column("fhir_id", sa.Text),
        sa.Column("fhir_version", sa.Text),
        sa.Column("delivered_version", sa.Integer),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'parked')", name="deliveries_state"),
    )
    op.create_index("deliveries_due", "deliveries", ["next_attempt_at"])
    op.create_index("deliveries_by_state", "deliveries", ["state", "updated_at"])
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("published_at", _TIME),
    )
    unpublished = sa.text("published_at IS NULL")
    op.create_index("outbox_pending", "outbox", ["id"], sqlite_where=unpublished, postgresql_where=unpublished)
    op.create_index("outbox_published", "outbox", ["published_at"])
    op.create_table(
        "inbox",
        sa.Column("consumer", sa.Text, primary_key=True),
        sa.Column("event_id", sa.Text, primary_key=True),
        sa.Column("handled_at", _TIME, nullable=False),
    )
    op.create_index("ix_inbox_handled_at", "inbox", ["handled_at"])


def downgrade() -> None:
    for table in ("inbox", "outbox", "deliveries", "studies"):
        op.drop_table(table)
