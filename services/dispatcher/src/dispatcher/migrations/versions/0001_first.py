"""Jobs, what is to be handed to Celery, outbox and inbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("study_instance_uid", sa.Text, nullable=False),
        sa.Column("study_version", sa.Integer, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("starts", sa.Integer, nullable=False),
        sa.Column("priority", sa.Text, nullable=False),
        sa.Column("images", sa.JSON, nullable=False),
        sa.Column("deadline_at", _MOMENT, nullable=False),
        sa.Column("queued_at", _MOMENT, nullable=False),
        sa.Column("started_at", _MOMENT),
        sa.Column("finished_at", _MOMENT),
        sa.Column("error_code", sa.Text),
        sa.Column("error_text", sa.Text),
    )
    op.create_index("jobs_study", "jobs", ["study_instance_uid", "study_version"])
    unfinished = sa.text("state IN ('queued', 'running')")
    op.create_index("jobs_open", "jobs", ["deadline_at"], sqlite_where=unfinished, postgresql_where=unfinished)
    op.create_table(
        "task_outbox",
        sa.Column("id", _ID, primary_key=True, autoincrement=True),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("priority", sa.Text, nullable=False),
        sa.Column("manifest", sa.LargeBinary),
        sa.Column("not_before", _MOMENT, nullable=False),
    )
    op.create_index("task_outbox_due", "task_outbox", ["not_before", "id"])
    op.create_index("task_outbox_job", "task_outbox", ["job_id"])
    op.create_table(
        "outbox",
        sa.Column("id", _ID, primary_key=True, autoincrement=True),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("published_at", _MOMENT),
    )
    pending = sa.text("published_at IS NULL")
    op.create_index("outbox_pending", "outbox", ["id"], sqlite_where=pending, postgresql_where=pending)
    op.create_index("outbox_published", "outbox", ["published_at"])
    op.create_table(
        "inbox",
        sa.Column("consumer", sa.Text, primary_key=True),
        sa.Column("event_id", sa.Text, primary_key=True),
        sa.Column("handled_at", _MOMENT, nullable=False),
    )
    op.create_index("ix_inbox_handled_at", "inbox", ["handled_at"])


def downgrade() -> None:
    for table in ("inbox", "outbox", "task_outbox", "jobs"):
        op.drop_table(table)
