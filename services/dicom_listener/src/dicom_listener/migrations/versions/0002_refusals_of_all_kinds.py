"""Refused associations and connections beside objects, with a count; objects are found by their key."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("refusals") as batch:
        batch.alter_column("status", existing_type=sa.Integer, nullable=True)
        batch.add_column(sa.Column("first_at", sa.DateTime(timezone=True)))
        batch.add_column(sa.Column("count", sa.Integer, nullable=False, server_default="1"))
        batch.add_column(sa.Column("scope", sa.Text, nullable=False, server_default="object"))
        batch.add_column(sa.Column("answer", sa.Text))
    op.execute("UPDATE refusals SET first_at = at")
    with op.batch_alter_table("refusals") as batch:
        batch.alter_column("first_at", existing_type=sa.DateTime(timezone=True), nullable=False)
    op.create_index("instances_object", "instances", ["object_key"])
