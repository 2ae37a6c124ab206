"""A draft is withdrawn when a newer version of its study is skipped or held."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_STATES = "state IN ('pending', 'delivered', 'parked', 'withdrawn')"


def upgrade() -> None:
    op.create_table(
        "skips",
        sa.Column("study_instance_uid", sa.Text, primary_key=True),
        sa.Column("study_version", sa.Integer, nullable=False),
        sa.Column("decided_at", _TIME, nullable=False),
    )
    if op.get_bind().dialect.name != "sqlite":
        op.drop_constraint("deliveries_state", "deliveries", type_="check")
        op.create_check_constraint("deliveries_state", "deliveries", _STATES)
        return
    # SQLite changes a check only with a new table, and check constraints and partial indices are not reflected.
    for index in ("deliveries_due", "deliveries_by_state", "deliveries_leased"):
        op.drop_index(index, "deliveries")
    with op.batch_alter_table("deliveries", recreate="always", copy_from=_deliveries()):
        pass
    leased = sa.text("lease_id IS NOT NULL")
    op.create_index("deliveries_due", "deliveries", ["next_attempt_at"])
    op.create_index("deliveries_by_state", "deliveries", ["state", "updated_at"])
    op.create_index("deliveries_leased", "deliveries", ["lease_id"], sqlite_where=leased)


def _deliveries() -> sa.Table:
    return sa.Table(
        "deliveries",
        sa.MetaData(),
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
        sa.CheckConstraint(_STATES, name="deliveries_state"),
    )
