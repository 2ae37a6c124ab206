"""Instance numbers of more digits than 32 bits hold."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("images") as batch:
        batch.alter_column("instance_number", existing_type=sa.Integer, type_=sa.BigInteger, existing_nullable=True)


def downgrade() -> None:
    # Those that do not fit are forgotten: they only put images of equal rank in order.
    op.execute("UPDATE images SET instance_number = NULL WHERE instance_number NOT BETWEEN -2147483648 AND 2147483647")
    with op.batch_alter_table("images") as batch:
        batch.alter_column("instance_number", existing_type=sa.BigInteger, type_=sa.Integer, existing_nullable=True)
