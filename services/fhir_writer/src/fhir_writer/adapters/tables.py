"""The service's own tables."""

from __future__ import annotations

import sqlalchemy as sa

from pipeline.consume import Inbox
from pipeline.outbox import Outbox

metadata = sa.MetaData()

studies = sa.Table(
    "studies",
    metadata,
    sa.Column("study_instance_uid", sa.Text, primary_key=True),
    sa.Column("study_version", sa.Integer, primary_key=True),
    sa.Column("kept", sa.JSON, nullable=False),
    sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("study_instance_uid", sa.Text, primary_key=True),
    sa.Column("study_version", sa.Integer, nullable=False),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("report", sa.JSON, nullable=False),
    sa.Column("written_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("traceparent", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("next_attempt_at", sa.DateTime(timezone=True)),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("reason_code", sa.Text),
    sa.Column("reason_text", sa.Text),
    sa.Column("http_status", sa.Integer),
    sa.Column("operation_outcome", sa.Text),
    sa.Column("outage_told", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("released", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("patient_wait_since", sa.DateTime(timezone=True)),
    sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
    sa.Column("lease_id", sa.Text),
    sa.Column("leased_until", sa.DateTime(timezone=True)),
    sa.Column("fhir_id", sa.Text),
    sa.Column("fhir_version", sa.Text),
    sa.Column("delivered_version", sa.Integer),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
    sa.CheckConstraint("state IN ('pending', 'delivered', 'parked', 'withdrawn')", name="deliveries_state"),
    sa.Index("deliveries_due", "next_attempt_at"),
    sa.Index("deliveries_by_state", "state", "updated_at"),
    # What is being delivered at the moment: few rows.
    sa.Index(
        "deliveries_leased",
        "lease_id",
        sqlite_where=sa.text("lease_id IS NOT NULL"),
        postgresql_where=sa.text("lease_id IS NOT NULL"),
    ),
)

# Drafts of versions before this one are left aside: it is skipped or held, or its delivery was deleted by age.
skips = sa.Table(
    "skips",
    metadata,
    sa.Column("study_instance_uid", sa.Text, primary_key=True),
    sa.Column("study_version", sa.Integer, nullable=False),
    sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
)

outbox = Outbox(metadata)
inbox = Inbox(metadata)
