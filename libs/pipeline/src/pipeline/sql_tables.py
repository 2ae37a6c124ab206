"""Tables of the embedded event log, for `sql_bus`. All names begin with `bus_`, so that any database can host it."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

partitions = sa.Table(
    "bus_partitions",
    metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    # Taken and raised in the transaction that inserts: offsets have no gaps and become visible in their order.
    sa.Column("next_offset", sa.BigInteger, nullable=False),
)

records = sa.Table(
    "bus_log",
    metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("offset", sa.BigInteger, primary_key=True),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("value", sa.LargeBinary, nullable=False),
    sa.Column("headers", sa.Text, nullable=False),  # a JSON object of texts
    sa.Column("created_at", sa.Double, nullable=False),  # seconds since 1970, UTC
    sa.Index("bus_log_age", "created_at"),
)

positions = sa.Table(
    "bus_positions",
    metadata,
    sa.Column("group_name", sa.Text, primary_key=True),
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("committed", sa.BigInteger, nullable=False),  # the first offset that is not done
    sa.Column("owner", sa.Text),  # the member that reads the partition and alone may commit
)

members = sa.Table(
    "bus_members",
    metadata,
    sa.Column("group_name", sa.Text, primary_key=True),
    sa.Column("member", sa.Text, primary_key=True),
    sa.Column("topics", sa.Text, nullable=False),  # a JSON list
    sa.Column("session_s", sa.Double, nullable=False),
    sa.Column("heartbeat_at", sa.Double, nullable=False),  # seconds since 1970, by the database's clock
)
