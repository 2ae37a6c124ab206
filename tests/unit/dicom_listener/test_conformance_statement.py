"""The conformance statement says what the code does."""

from __future__ import annotations

import runpy
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]


def test_the_tables_of_the_conformance_statement_come_from_the_code() -> None:
    page = (REPOSITORY / "docs" / "dicom-conformance.md").read_text()
    script = runpy.run_path(str(REPOSITORY / "scripts" / "gen_conformance_docs.py"))
    assert script["filled"](page) == page, "write them anew: python scripts/gen_conformance_docs.py"
    for name in script["TABLES"]:
        assert f"<!-- table: {name} -->" in page
