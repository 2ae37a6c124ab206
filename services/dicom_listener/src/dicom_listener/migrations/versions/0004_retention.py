"""Objects that are deleted while their rows stay."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("studies", sa.Column("expired_at", sa.DateTime(timezone=True)))
    op.add_column("instances", sa.Column("deleted_at", sa.DateTime(timezone=True)))
    expiring = sa.text("completed_at IS NOT NULL AND expired_at IS NULL")
    op.create_index("studies_expiring", "studies", ["completed_at"], sqlite_where=expiring, postgresql_where=expiring)
