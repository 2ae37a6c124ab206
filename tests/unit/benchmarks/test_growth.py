"""Nothing that the services do for one more study, or again and again, reads a whole table.

The steps are those that `benchmarks/growth.py` measures; SQLite's plan for each statement is asked. It chooses plans by
the statement's text, so what holds for a few rows holds for a million.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pipeline.database import Database

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SERVICES = ["dicom_listener", "dispatcher", "fhir_writer", "console"]
FEW_ROWS = {"pauses", "dead_letters"}
"""One row at most; counted up to a limit."""


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("growth_parts")
    del sys.modules["growth_parts"]


@pytest.mark.parametrize("service", SERVICES)
def test_no_statement_reads_a_whole_table(parts: Any, tmp_path: Path, service: str) -> None:
    kind = next(part for part in parts.PARTS if part.name == service)
    database = Database(f"sqlite:///{tmp_path}/growth.sqlite3")
    part = kind(database, tmp_path / "objects")
    statements: dict[str, Any] = {}

    @sa.event.listens_for(database.engine, "before_cursor_execute")
    def _note(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        statements[statement] = parameters[0] if many else parameters

    for number in (parts.TEMPLATE, parts.TEMPLATE + 1):
        for _, step in (*part.study(number), *part.looks()):
            step()
    sa.event.remove(database.engine, "before_cursor_execute", _note)
    with database.read() as connection:
        plans = {
            statement: [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
            for statement, values in statements.items()
            if statement.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE")
        }
    database.close()
    assert len(plans) > 10
    many = {table.name for table in kind.tables.sorted_tables} - FEW_ROWS
    lines = [(statement, line.split()) for statement, plan in plans.items() for line in plan]
    assert [
        (statement, words)
        for statement, words in lines
        if words[0] == "SCAN"
        and words[1] in many
        and "USING" not in words  # "using index": in its order, until the limit
    ] == []


def test_the_measuring_itself(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "growth.py"), "--studies", "1200", "--repeats", "2"]
    command += [
        "--retention-seconds",
        "0.5",
        "--engine",
        "sqlite",
        "--only",
        "dicom_listener",
        "--folder",
        str(tmp_path),
    ]
    subprocess.run([*command, "--json", str(tmp_path / "result.json")], check=True)
    listener = json.loads((tmp_path / "result.json").read_text())["engines"]["sqlite"]["dicom_listener"]
    assert listener["studies"] == {"small": 1000, "large": 1200}
    assert listener["retention"]["objects_recorded_a_second"] > 0
    assert not list(tmp_path.glob("*sqlite*"))
