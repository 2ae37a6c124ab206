"""Requests to fetch studies from an archive, and which studies were fetched as priors."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_time = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "fetches",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("wish_key", sa.Text, nullable=False),
        sa.Column("study_instance_uid", sa.Text),
        sa.Column("accession_number", sa.Text),
        sa.Column("priors", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("text", sa.Text),
        sa.Column("shares", sa.JSON, nullable=False),
        sa.Column("created_at", _time, nullable=False),
        sa.Column("updated_at", _time, nullable=False),
        sa.Column("next_attempt_at", _time),
        sa.Column("done_at", _time),
    )
    op.create_index("ix_fetches_created_at", "fetches", ["created_at"])
    op.create_index("ix_fetches_done_at", "fetches", ["done_at"])
    waiting = sa.text("done_at IS NULL")
    op.create_index(
        "fetches_open", "fetches", ["wish_key"], unique=True, sqlite_where=waiting, postgresql_where=waiting
    )
    op.create_table(
        "fetched_priors",
        sa.Column("study_instance_uid", sa.Text, primary_key=True),
        sa.Column("at", _time, nullable=False),
    )
