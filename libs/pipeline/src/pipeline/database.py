"""One SQL database per service: SQLite (WAL) or PostgreSQL behind the same few calls."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import alembic.command
import alembic.config
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from pipeline.errors import TransientError

_MIGRATION_LOCK = 0x6563686F  # any fixed number: PostgreSQL advisory lock of the migrating process
_PEER_LOST = {
    "connect_timeout": 5,
    # A host that is gone without a word is noticed after 25 s, whether its answer is waited for (probes) or a statement
    # is under way to it (TCP_USER_TIMEOUT). By the system's own settings it takes two hours and a quarter of an hour.
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""libpq's connection options; those that the URL gives take precedence."""
_WRONG_ADDRESS = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",  # role or database
    "unable to open database file",  # SQLite: no such folder
)
_READ_ONLY = "25006"  # SQLSTATE read_only_sql_transaction
_LOCKED_S = 30.0


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may work later: the server is away, a lock timed out, the disk is full.

    The driver calls all such states operational errors, except for a server that only reads (see `_postgresql_engine`).
    """
    if isinstance(error, sa.exc.DBAPIError):
        if isinstance(error.orig, sqlite3.Error) and getattr(error.orig, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR:
            return False  # a wrong statement or a missing table, which SQLite's driver also calls operational
        return error.connection_invalidated or isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
    return isinstance(error, TransientError | sa.exc.TimeoutError)


def why_unreachable(error: BaseException) -> str | None:
    """What the driver says of a connection that did not come about (it names host and user, never data)."""
    if isinstance(error, sa.exc.OperationalError) and error.statement is None:
        return " ".join(str(error.orig).split())
    return why_unreachable(error.__cause__) if error.__cause__ else None


def is_wrong_address(error: BaseException) -> bool:
    """Whether a connection did not come about for a reason that no waiting changes.

    An error before the login has no SQLSTATE, so PostgreSQL's English texts decide; in another language it is waited.
    """
    return any(words in (why_unreachable(error) or "") for words in _WRONG_ADDRESS)


class Database:
    """Transactions on one database. `url` as SQLAlchemy writes it: `sqlite:///...` or `postgresql+psycopg://...`.

    `synchronous` is SQLite's: with FULL a commit is on disk when it returns, with NORMAL the last ones may be lost by a
    power cut (never by the death of the process).
    """

    def __init__(self, url: str, *, synchronous: Literal["FULL", "NORMAL"] = "FULL") -> None:
        parsed = sa.make_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self.engine = _sqlite_engine(parsed, synchronous) if self.is_sqlite else _postgresql_engine(parsed)

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, committed when the block ends well and rolled back when it does not."""
        with self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that takes no write lock."""
        with self.engine.connect().execution_options(sqlite_begin="DEFERRED") as connection:
            yield connection

    def ping(self) -> None:
        """Raise unless the database answers."""
        with self.read() as connection:
            connection.execute(sa.text("SELECT 1"))

    def migrate(self, scripts: Path) -> None:
        """Bring the schema to the newest revision of the Alembic folder `scripts`; safe when several start at once."""
        config = alembic.config.Config()
        config.set_main_option("script_location", str(scripts).replace("%", "%%"))
        with self.engine.begin() as connection:
            if not self.is_sqlite:  # SQLite's BEGIN IMMEDIATE already lets only one in
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:n)"), {"n": _MIGRATION_LOCK})
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")

    def close(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()


def _sqlite_engine(url: sa.URL, synchronous: str) -> Engine:
    # Few are kept, and the last used first: only one writes at a time, and each keeps up to 2 MB of pages in memory.
    engine = sa.create_engine(
        url, connect_args={"timeout": _LOCKED_S}, pool_size=3, max_overflow=27, pool_use_lifo=True
    )

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _record: object) -> None:
        # The driver's own transaction control would open transactions late and without a write lock.
        connection.isolation_level = None
        _write_ahead(connection)
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("PRAGMA foreign_keys=ON")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Set the journal mode. While others do so for a new file SQLite says "locked" at once, whatever the time-out."""
    until = time.monotonic() + _LOCKED_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(0.01)


def _postgresql_engine(url: sa.URL) -> Engine:
    options = {name: value for name, value in _PEER_LOST.items() if name not in url.query}
    engine = sa.create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=20, connect_args=options)

    @sa.event.listens_for(engine, "handle_error")
    def _leave_former_primary(context: sa.engine.ExceptionContext) -> None:
        # After a failover the old connections still answer, and write nothing: all of them are closed.
        if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
            context.is_disconnect = True

    return engine
