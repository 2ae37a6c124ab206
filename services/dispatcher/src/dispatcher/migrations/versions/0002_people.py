"""What people decide: studies held, dead letters, pausing; and a pace per site."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("site", sa.Text, nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("assumed", sa.JSON, nullable=False, server_default="[]"))
    op.add_column("jobs", sa.Column("evidence", sa.JSON, nullable=False, server_default="[]"))
    failed, waiting = sa.text("state = 'failed'"), sa.text("state = 'waiting'")
    op.create_index("jobs_failed", "jobs", ["finished_at"], sqlite_where=failed, postgresql_where=failed)
    op.create_table(
        "holds",
        sa.Column("study_instance_uid", sa.Text, primary_key=True),
        sa.Column("study_version", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("codes", sa.JSON, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("priority", sa.Text, nullable=False),
        sa.Column("site", sa.Text, nullable=False),
        sa.Column("images", sa.JSON, nullable=False),
        sa.Column("evidence", sa.JSON, nullable=False),
        sa.Column("held_at", _MOMENT, nullable=False),
        sa.Column("decided_at", _MOMENT),
    )
    op.create_index("holds_waiting", "holds", ["held_at"], sqlite_where=waiting, postgresql_where=waiting)
    op.create_table(
        "letters",
        sa.Column("letter_id", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("error_code", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
    )
    op.create_index("letters_waiting", "letters", ["at"], sqlite_where=waiting, postgresql_where=waiting)
    op.create_table(
        "site_turns",
        sa.Column("site", sa.Text, primary_key=True),
        sa.Column("next_at", _MOMENT, nullable=False),
    )
    op.create_table(
        "pauses",
        sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("since", _MOMENT, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )


def downgrade() -> None:
    for table in ("pauses", "site_turns", "letters", "holds"):
        op.drop_table(table)
    op.drop_index("jobs_failed", "jobs")
    for column in ("evidence", "assumed", "site"):
        op.drop_column("jobs", column)
