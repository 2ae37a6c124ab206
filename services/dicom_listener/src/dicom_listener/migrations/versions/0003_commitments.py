"""Storage commitment requests whose results are to be sent."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_identity = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_time = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "commitments",
        sa.Column("id", _identity, primary_key=True, autoincrement=True),
        sa.Column("transaction_uid", sa.Text, nullable=False),
        sa.Column("calling_ae_title", sa.Text, nullable=False),
        sa.Column("called_ae_title", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("requested", sa.JSON, nullable=False),
        sa.Column("created_at", _time, nullable=False),
        sa.Column("next_attempt_at", _time, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("done_at", _time),
        sa.Column("outcome", sa.Text),
    )
    op.create_index("ix_commitments_done_at", "commitments", ["done_at"])
    waiting = sa.text("done_at IS NULL")
    op.create_index(
        "commitments_waiting", "commitments", ["next_attempt_at"], sqlite_where=waiting, postgresql_where=waiting
    )
