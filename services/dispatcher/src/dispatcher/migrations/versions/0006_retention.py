"""What is decided is deleted after a time: found by when it ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name, table, column, states in (
        ("jobs_ended", "jobs", "finished_at", "'done', 'superseded', 'discarded'"),
        ("holds_decided", "holds", "decided_at", "'released', 'declined', 'superseded'"),
        ("letters_decided", "letters", "at", "'replayed', 'discarded'"),
    ):
        decided = sa.text(f"state IN ({states})")
        op.create_index(name, table, [column], sqlite_where=decided, postgresql_where=decided)


def downgrade() -> None:
    for name, table in (("letters_decided", "letters"), ("holds_decided", "holds"), ("jobs_ended", "jobs")):
        op.drop_index(name, table)
