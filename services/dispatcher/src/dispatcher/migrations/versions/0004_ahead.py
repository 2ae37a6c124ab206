"""What is handed over next is found by an index: withdrawals, urgent jobs, jobs queued again, the others."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("task_outbox_due", "task_outbox")
    op.create_index("task_outbox_next", "task_outbox", ["action", "priority", "attempt", "id"])


def downgrade() -> None:
    op.drop_index("task_outbox_next", "task_outbox")
    op.create_index("task_outbox_due", "task_outbox", ["not_before", "id"])
