"""Many studies from one, inside the database: its rows again and again, with other numbers and older times."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

import sqlalchemy as sa

SECONDS_APART = 30  # a million studies in eleven months
_CHUNK = 100_000
# A bijection on 32 bits: neighbours in time are no neighbours in the indices, as with real UIDs.
_SCATTERED = "(CAST(n.i AS BIGINT) * 2654435761) % 4294967296"


def _is_time(column: sa.Column[object]) -> bool:
    return isinstance(getattr(column.type, "impl", column.type), sa.DateTime)


def _expression(column: sa.Column[object], number: str, replaced: Mapping[str, str], *, sqlite: bool) -> str:
    """SQL of the copy's value: texts with the other number, times further back, anything else as it is."""
    name = f't."{column.name}"'
    if _is_time(column):
        if sqlite:
            return f"strftime('%Y-%m-%d %H:%M:%f', {name}, '-' || (n.i * {SECONDS_APART}) || ' seconds') || '000'"
        return f"{name} - n.i * interval '{SECONDS_APART} seconds'"
    if not isinstance(column.type, sa.Text | sa.JSON):
        return name
    value = name if sqlite else f"{name}::text"
    for old, prefix in replaced.items():
        value = f"replace({value}, '{old}', '{prefix}' || {number})"
    return f"({value})::json" if isinstance(column.type, sa.JSON) and not sqlite else value


def _limit(table: str, studies: int) -> int:
    """Of how many studies rows stand in a table: services forget what was published or handled long ago."""
    days = {"outbox": 1, "inbox": 14}.get(table)
    return studies if days is None else min(studies, days * 86_400 // SECONDS_APART - 10)


def multiply(engine: sa.Engine, tables: sa.MetaData, studies: int, replaced: Mapping[str, str]) -> None:
    """Make `studies` studies out of the one that every table holds the rows of.

    `replaced`: a text that each copy has its own of -> what stands before the copy's number there.
    """
    sqlite = engine.dialect.name == "sqlite"
    number = f"printf('%012d', {_SCATTERED})" if sqlite else f"lpad(({_SCATTERED})::text, 12, '0')"
    if sqlite:
        _hurry(engine)
    for table in tables.sorted_tables:
        with engine.begin() as connection:
            for index in table.indexes:
                index.drop(connection)
            keys = {} if sqlite else _without_keys(connection, table.name)
            connection.execute(sa.text(f'CREATE TABLE growth_template AS SELECT * FROM "{table.name}"'))
        columns = [c for c in table.columns if not (c.primary_key and c.autoincrement is True)]
        names = ", ".join(f'"{column.name}"' for column in columns)
        values = ", ".join(_expression(column, number, replaced, sqlite=sqlite) for column in columns)
        total = _limit(table.name, studies) - 1
        for first in range(1, total + 1, _CHUNK):
            last = min(total, first + _CHUNK - 1)
            if sqlite:
                numbers = f"WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last}) "
                source = "n"
            else:
                numbers, source = "", f"generate_series({first}, {last}) AS n(i)"
            copy = f'{numbers}INSERT INTO "{table.name}" ({names}) SELECT {values} FROM {source}, growth_template t'
            with engine.begin() as connection:
                connection.exec_driver_sql(copy if sqlite else copy.replace("%", "%%"))
        with engine.begin() as connection:
            connection.execute(sa.text("DROP TABLE growth_template"))
            for name, definition in keys.items():
                connection.execute(sa.text(f'ALTER TABLE "{table.name}" ADD CONSTRAINT "{name}" {definition}'))
            for index in table.indexes:
                index.create(connection)
    if not sqlite:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("VACUUM ANALYZE"))


def _without_keys(connection: sa.Connection, table: str) -> dict[str, str]:
    """Drop primary key and unique constraints, which are built faster afterwards; name -> definition."""
    query = sa.text(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = CAST(:n AS regclass) AND contype IN ('p', 'u')"
    )
    keys = {str(name): str(definition) for name, definition in connection.execute(query, {"n": table})}
    for name in keys:
        connection.execute(sa.text(f'ALTER TABLE "{table}" DROP CONSTRAINT "{name}"'))
    return keys


def _hurry(engine: sa.Engine) -> None:
    """For loading only: a power cut may take the benchmark's database."""

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA journal_mode=OFF")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA cache_size=-300000")


def sizes(engine: sa.Engine, tables: sa.MetaData) -> dict[str, dict[str, int]]:
    """Rows, bytes and bytes of the indices of each table; SQLite counts pages, where its build can."""
    found: dict[str, dict[str, int]] = {}
    with engine.connect() as connection:
        for table in tables.sorted_tables:
            rows = int(connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0)
            entry = {"rows": rows}
            if engine.dialect.name == "sqlite":
                entry |= _sqlite_bytes(connection, table)
            else:
                query = sa.text("SELECT pg_table_size(CAST(:n AS regclass)), pg_indexes_size(CAST(:n AS regclass))")
                entry["table_bytes"], entry["index_bytes"] = connection.execute(query, {"n": table.name}).one()
            found[table.name] = entry
    return found


def _sqlite_bytes(connection: sa.Connection, table: sa.Table) -> dict[str, int]:
    # pageno is the number of pages here; pgsize overflowed at 2 GB in SQLite 3.40
    query = sa.text(
        "SELECT m.type, sum(s.pageno) * (SELECT page_size FROM pragma_page_size)"
        " FROM dbstat s JOIN sqlite_master m ON m.name = s.name"
        " WHERE m.tbl_name = :n AND s.aggregate = TRUE GROUP BY m.type"
    )
    try:
        by_type = dict(tuple(row) for row in connection.execute(query, {"n": table.name}))
    except sa.exc.OperationalError:  # built without dbstat
        return {}
    return {"table_bytes": int(by_type.get("table", 0)), "index_bytes": int(by_type.get("index", 0))}
