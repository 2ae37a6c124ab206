"""One database per service: durable, one writer at a time, migrated once however many start."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from pipeline.database import Database, is_transient

ENV = """
from alembic import context
connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=None)
with context.begin_transaction():
    context.run_migrations()
"""
REVISION = """
import time
import sqlalchemy as sa
from alembic import op
revision, down_revision, branch_labels, depends_on = "0001", None, None, None
def upgrade() -> None:
    op.create_table("things", sa.Column("id", sa.Integer, primary_key=True))
    time.sleep(0.2)
    op.execute("INSERT INTO things (id) VALUES (1)")
"""
MIGRATE = "import sys; from pathlib import Path; from pipeline.database import Database; " + (
    "Database(sys.argv[1]).migrate(Path(sys.argv[2]))"
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/service.sqlite3")
    yield database
    database.close()


def test_commits_are_on_disk_and_readers_do_not_wait(database: Database) -> None:
    with database.read() as connection:
        settings = {name: connection.scalar(sa.text(f"PRAGMA {name}")) for name in ("synchronous", "journal_mode")}
        assert settings == {"synchronous": 2, "journal_mode": "wal"}
        assert connection.scalar(sa.text("PRAGMA foreign_keys")) == 1


def test_a_new_file_that_another_process_sets_up_is_waited_for(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite says at once that it is locked, whatever the time-out."""
    waited: list[float] = []
    with contextlib.closing(sqlite3.connect(tmp_path / "service.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 3:
                other.execute("ROLLBACK")

        monkeypatch.setattr("pipeline.database.time", SimpleNamespace(monotonic=lambda: sum(waited), sleep=sleep))
        database.ping()
    assert len(waited) == 3


def test_a_file_that_stays_locked_is_given_up(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("pipeline.database.time", SimpleNamespace(monotonic=lambda: sum(waited), sleep=waited.append))
    with contextlib.closing(sqlite3.connect(tmp_path / "service.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sa.exc.OperationalError, match="locked") as caught:
            database.ping()
    assert is_transient(caught.value)
    assert sum(waited) == pytest.approx(30, abs=0.1)


def test_a_writer_takes_its_lock_first(database: Database) -> None:
    """BEGIN IMMEDIATE: two that read before they write cannot both come to a dead end."""
    statements: list[str] = []
    sa.event.listen(
        database.engine, "before_cursor_execute", lambda _c, _cursor, statement, *_: statements.append(statement)
    )
    with database.write() as connection:
        connection.execute(sa.text("SELECT 1"))
    with database.read() as connection:
        connection.execute(sa.text("SELECT 2"))
    assert statements == ["BEGIN IMMEDIATE", "SELECT 1", "BEGIN DEFERRED", "SELECT 2"]


def test_a_failed_block_leaves_nothing(database: Database) -> None:
    def fail() -> None:
        with database.write() as connection:
            connection.execute(sa.text("CREATE TABLE things (id INTEGER)"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.read() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM sqlite_master")) == 0


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres"))])
def test_several_processes_may_migrate_at_once(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    scripts = tmp_path / "with 100% space"
    (scripts / "versions").mkdir(parents=True)
    (scripts / "env.py").write_text(ENV)
    (scripts / "versions" / "0001_things.py").write_text(REVISION)
    url = request.getfixturevalue("postgres_url") if kind == "postgres" else f"sqlite:///{tmp_path}/new.sqlite3"
    starts = [
        subprocess.Popen([sys.executable, "-c", MIGRATE, url, str(scripts)], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [process.communicate(timeout=120)[1] for process in starts] == [""] * 4
    assert {process.returncode for process in starts} == {0}
    database = Database(url)
    with database.read() as connection:
        assert connection.scalars(sa.text("SELECT id FROM things")).all() == [1]
    database.close()


def socket_options(database: Database) -> dict[str, int]:
    """What the kernel was told about the connection to the server."""
    with database.read() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        with socket.socket(fileno=os.dup(driver.fileno())) as peer:
            names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            options = {name: peer.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names}
            return options | {"SO_KEEPALIVE": peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)}


def test_a_server_that_is_gone_without_a_word_is_noticed_within_half_a_minute(postgres_url: str) -> None:
    database = Database(postgres_url)
    options = socket_options(database)
    database.close()
    assert options["SO_KEEPALIVE"] == 1
    assert options["TCP_KEEPIDLE"] + options["TCP_KEEPINTVL"] * options["TCP_KEEPCNT"] <= 30
    assert 20_000 <= options["TCP_USER_TIMEOUT"] <= 30_000


def test_a_site_may_give_other_connection_options_in_the_url(postgres_url: str) -> None:
    database = Database(f"{postgres_url}?tcp_user_timeout=60000")
    options = socket_options(database)
    database.close()
    assert (options["TCP_USER_TIMEOUT"], options["TCP_KEEPIDLE"]) == (60_000, 10)


def alter(database: Database, *settings: str) -> None:
    """Set or reset what new sessions of this database begin with."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        name = connection.scalar(sa.text("SELECT current_database()"))
        for setting in settings:
            connection.execute(sa.text("SET default_transaction_read_only = off"))
            connection.execute(sa.text(f'ALTER DATABASE "{name}" {setting}'))


def test_a_server_that_only_reads_is_waited_for_and_its_connections_are_left(postgres_url: str) -> None:
    """As after a failover: the old primary became a standby, and the same address leads to the new one."""
    database, operator = Database(postgres_url), Database(postgres_url)
    create = sa.text("CREATE TABLE things (id INTEGER)")
    alter(operator, "SET default_transaction_read_only = on")
    with database.read() as idle:
        idle.execute(sa.text("SELECT 1"))
        with pytest.raises(sa.exc.DBAPIError) as caught, database.write() as connection:
            connection.execute(create)
    assert is_transient(caught.value)
    alter(operator, "RESET default_transaction_read_only")
    with database.write() as connection:  # an old connection would go on reading only
        connection.execute(create)
    database.close()
    operator.close()


@pytest.mark.parametrize(
    ("sqlstate", "transient"),
    [
        *((code, True) for code in ("40001", "40P01", "53100", "53200", "53300", "55P03", "57014", "57P01", "57P02")),
        *((code, True) for code in ("57P03", "58030", "08006", "25006")),
        *((code, False) for code in ("22001", "23505", "25P02", "42601", "42P01", "XX001")),
    ],
)
def test_what_postgresql_says_of_itself_is_waited_for_and_what_it_says_of_a_statement_is_not(
    module_postgres_url: str, sqlstate: str, transient: bool
) -> None:
    database = Database(module_postgres_url)
    block = f"DO $$ BEGIN RAISE EXCEPTION 'as asked' USING ERRCODE = '{sqlstate}'; END $$"
    with pytest.raises(sa.exc.DBAPIError) as caught, database.write() as connection:
        connection.execute(sa.text(block))
    database.close()
    assert is_transient(caught.value) is transient


def test_a_session_that_an_administrator_ends_is_opened_again(postgres_url: str) -> None:
    database = Database(postgres_url)
    with pytest.raises(sa.exc.DBAPIError) as caught, database.write() as connection:
        connection.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert is_transient(caught.value)
    database.ping()
    database.close()
