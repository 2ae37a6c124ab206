"""A site's turns are taken when a job is handed over, so what waits to be handed over names its site."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("task_outbox", sa.Column("site", sa.Text, nullable=False, server_default=""))
    tasks = sa.table("task_outbox", sa.column("job_id", sa.Text), sa.column("site", sa.Text))
    jobs = sa.table("jobs", sa.column("job_id", sa.Text), sa.column("site", sa.Text))
    site = sa.select(jobs.c.site).where(jobs.c.job_id == tasks.c.job_id).scalar_subquery()
    op.execute(tasks.update().where(tasks.c.job_id.in_(sa.select(jobs.c.job_id))).values(site=site))


def downgrade() -> None:
    op.drop_column("task_outbox", "site")
