"""The dispatcher's tables; the migrations create the same."""

from __future__ import annotations

import sqlalchemy as sa

from pipeline.consume import Inbox
from pipeline.outbox import Outbox

metadata = sa.MetaData()
outbox = Outbox(metadata)
inbox = Inbox(metadata)

_MOMENT = sa.DateTime(timezone=True)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("study_instance_uid", sa.Text, nullable=False),
    sa.Column("study_version", sa.Integer, nullable=False),
    sa.Column("model_version", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # queued, running, done, failed, superseded
    # Numbers the messages: each time the job is queued it gets the next one.
    sa.Column("attempt", sa.Integer, nullable=False),
    # How often a worker said that it began: this, not `attempt`, is limited, so that a queue that loses its messages
    # or has no worker for a day costs no study its report.
    sa.Column("starts", sa.Integer, nullable=False),
    sa.Column("priority", sa.Text, nullable=False),
    sa.Column("images", sa.JSON, nullable=False),
    sa.Column("deadline_at", _MOMENT, nullable=False),
    sa.Column("queued_at", _MOMENT, nullable=False),
    sa.Column("started_at", _MOMENT),
    sa.Column("finished_at", _MOMENT),
    sa.Column("error_code", sa.Text),
    sa.Column("error_text", sa.Text),
    sa.Index("jobs_study", "study_instance_uid", "study_version"),
    # Only unfinished jobs are ever searched for by time: the index stays small however many have finished.
    sa.Index(
        "jobs_open",
        "deadline_at",
        sqlite_where=sa.text("state IN ('queued', 'running')"),
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    ),
)

task_outbox = sa.Table(
    "task_outbox",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("action", sa.Text, nullable=False),  # enqueue, withdraw
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("priority", sa.Text, nullable=False),
    sa.Column("manifest", sa.LargeBinary),  # null for withdraw
    sa.Column("not_before", _MOMENT, nullable=False),
    sa.Index("task_outbox_due", "not_before", "id"),
    sa.Index("task_outbox_job", "job_id"),
)
