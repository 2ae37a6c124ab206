"""Leases are found without a look at every delivery."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    leased = sa.text("lease_id IS NOT NULL")
    op.create_index("deliveries_leased", "deliveries", ["lease_id"], sqlite_where=leased, postgresql_where=leased)
