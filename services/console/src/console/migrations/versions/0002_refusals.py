"""What senders were refused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "refusals",
        sa.Column("event_id", sa.Text, primary_key=True),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("first_at", _MOMENT, nullable=False),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("reason_code", sa.Text, nullable=False),
        sa.Column("reason_text", sa.Text, nullable=False),
        sa.Column("status", sa.Text),
        sa.Column("calling_ae_title", sa.Text, nullable=False),
        sa.Column("called_ae_title", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("accession_number", sa.Text),
        sa.Column("count", sa.Integer, nullable=False),
    )
    op.create_index("refusals_at", "refusals", ["at", "event_id"])
    op.create_index("refusals_calling", "refusals", ["calling_ae_title", "at", "event_id"])
    op.create_index("refusals_reason", "refusals", ["reason_code", "at", "event_id"])


def downgrade() -> None:
    op.drop_table("refusals")
