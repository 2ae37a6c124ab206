"""The newest version of each study that was decided on, also where the decision was that there is no report."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    versions = op.create_table(
        "versions",
        sa.Column("study_instance_uid", sa.Text, primary_key=True),
        sa.Column("newest", sa.Integer, nullable=False),
        sa.Column("decided_at", _MOMENT, nullable=False),
    )
    # Of what was skipped before nothing is left to know it by.
    uid, version = sa.column("study_instance_uid", sa.Text), sa.column("study_version", sa.Integer)
    known = sa.union_all(
        *(sa.select(uid, version).select_from(sa.table(name)) for name in ("jobs", "holds"))
    ).subquery()
    now = sa.literal(datetime.now(UTC), _MOMENT)
    newest = sa.select(known.c.study_instance_uid, sa.func.max(known.c.study_version), now)
    names = ["study_instance_uid", "newest", "decided_at"]
    op.execute(versions.insert().from_select(names, newest.group_by(known.c.study_instance_uid)))


def downgrade() -> None:
    op.drop_table("versions")
