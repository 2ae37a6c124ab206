"""Refusals are found by what was kept for them."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    kept = sa.text("quarantine_key IS NOT NULL")
    op.create_index("refusals_quarantined", "refusals", ["quarantine_key"], sqlite_where=kept, postgresql_where=kept)
