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
    sa.Column("state", sa.Text, nullable=False),  # queued, running, done, failed, superseded, discarded
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
    sa.Column("site", sa.Text, nullable=False, server_default=""),
    sa.Column("assumed", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("evidence", sa.JSON, nullable=False, server_default="[]"),
    sa.Index("jobs_study", "study_instance_uid", "study_version"),
    # Only unfinished jobs are ever searched for by time: the index stays small however many have finished.
    sa.Index(
        "jobs_open",
        "deadline_at",
        sqlite_where=sa.text("state IN ('queued', 'running')"),
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    ),
    # Those that are deleted after a time.
    sa.Index(
        "jobs_ended",
        "finished_at",
        sqlite_where=sa.text("state IN ('done', 'superseded', 'discarded')"),
        postgresql_where=sa.text("state IN ('done', 'superseded', 'discarded')"),
    ),
    # Those that a person has to look at, likewise few.
    sa.Index(
        "jobs_failed",
        "finished_at",
        sqlite_where=sa.text("state = 'failed'"),
        postgresql_where=sa.text("state = 'failed'"),
    ),
)

# The newest version of each study that was decided on: a study that was skipped leaves no other trace.
versions = sa.Table(
    "versions",
    metadata,
    sa.Column("study_instance_uid", sa.Text, primary_key=True),
    sa.Column("newest", sa.Integer, nullable=False),
    sa.Column("decided_at", _MOMENT, nullable=False),
)

holds = sa.Table(
    "holds",
    metadata,
    sa.Column("study_instance_uid", sa.Text, primary_key=True),
    sa.Column("study_version", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # waiting, released, declined, superseded
    sa.Column("codes", sa.JSON, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("priority", sa.Text, nullable=False),
    sa.Column("site", sa.Text, nullable=False),
    sa.Column("images", sa.JSON, nullable=False),
    sa.Column("evidence", sa.JSON, nullable=False),
    sa.Column("held_at", _MOMENT, nullable=False),
    sa.Column("decided_at", _MOMENT),
    sa.Index(
        "holds_decided",
        "decided_at",
        sqlite_where=sa.text("state IN ('released', 'declined', 'superseded')"),
        postgresql_where=sa.text("state IN ('released', 'declined', 'superseded')"),
    ),
    sa.Index(
        "holds_waiting",
        "held_at",
        sqlite_where=sa.text("state = 'waiting'"),
        postgresql_where=sa.text("state = 'waiting'"),
    ),
)

# Events that this service gave up. The bytes are kept so that they can be tried again; they may name a patient.
letters = sa.Table(
    "letters",
    metadata,
    sa.Column("letter_id", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),  # waiting, replayed, discarded
    sa.Column("at", _MOMENT, nullable=False),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("value", sa.LargeBinary, nullable=False),
    sa.Column("error_code", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Index(
        "letters_decided",
        "at",
        sqlite_where=sa.text("state IN ('replayed', 'discarded')"),
        postgresql_where=sa.text("state IN ('replayed', 'discarded')"),
    ),
    sa.Index(
        "letters_waiting",
        "at",
        sqlite_where=sa.text("state = 'waiting'"),
        postgresql_where=sa.text("state = 'waiting'"),
    ),
)

# When the next routine job of a site may be handed over.
site_turns = sa.Table(
    "site_turns",
    metadata,
    sa.Column("site", sa.Text, primary_key=True),
    sa.Column("next_at", _MOMENT, nullable=False),
)

pauses = sa.Table(
    "pauses",
    metadata,
    sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),  # always 1: a row while paused
    sa.Column("since", _MOMENT, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
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
    sa.Column("site", sa.Text, nullable=False, server_default=""),
    sa.Index("task_outbox_next", "action", "priority", "attempt", "id"),
    sa.Index("task_outbox_job", "job_id"),
)
