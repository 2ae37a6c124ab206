"""Tables, free-text reports and names as published corpora write them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from echo_model.corpora.entry import CorpusError, Problem, View

SPLIT_NAMES: Final = {
    "train": "train", "training": "train", "valid": "validate", "validate": "validate", "validation": "validate",
    "val": "validate", "dev": "validate", "test": "test", "testing": "test",
}  # fmt: skip
_FRONTAL: Final = re.compile(r"\b(?:ap|pa|frontal|antero-?\s?posterior|postero-?\s?anterior)\b")
_LATERAL: Final = re.compile(r"\b(?:lateral|ll|rl|lat|decub\w*)\b")
_SECTION: Final = re.compile(
    r"(?:^[ \t]*|(?<=[.;!?])[ \t]+(?=[^:.\n]+:))(?P<name>findings?(?: and impression)?|impression|conclusion"
    r"|indication|clinical (?:history|information)"
    r"|history|reason for (?:exam(?:ination)?|study)|comparisons?|technique|examination|final report|wet read"
    r"|recommendations?|notifications?)[ \t]*[:\n]",
    re.IGNORECASE | re.MULTILINE,
)
csv.field_size_limit(min(sys.maxsize, 10_000_000))


@dataclass
class Reading:
    """What a layout reads: records as they come, problems beside them."""

    root: Path
    problems: list[Problem] = field(default_factory=list)

    def say(self, where: str, code: str, message: str, *, is_error: bool = True) -> None:
        """Note a problem."""
        self.problems.append(Problem(where, code, message, is_error))


def view_of(text: str) -> View:
    """View from a position or projection name."""
    low = text.lower().replace("_", " ")
    if _LATERAL.search(low):
        return "lateral"
    return "frontal" if _FRONTAL.search(low) else "unknown"


def split_of(text: str) -> str:
    """`train`, `validate`, `test`, or empty for any other name."""
    return SPLIT_NAMES.get(text.strip().lower(), "")


def split_report(text: str) -> dict[str, str]:
    """Sections of a free-text report; what stands under no heading counts as findings."""
    sections: dict[str, str] = {}
    headings = list(_SECTION.finditer(text))
    starts = [match.start() for match in headings] + [len(text)]
    parts = [("findings", text[: starts[0]])] if not headings else []
    for match, end in zip(headings, starts[1:], strict=True):
        parts.append((_section_name(match["name"].lower()), text[match.end() : end]))
    for name, body in parts:
        if name and (cleaned := clean(body)):
            sections[name] = f"{sections[name]} {cleaned}" if name in sections else cleaned
    return sections


def _section_name(heading: str) -> str:
    for start, name in (
        ("finding", "findings"), ("impression", "impression"), ("conclusion", "impression"),
        ("indication", "indication"),
        ("reason", "indication"), ("clinical", "history"), ("history", "history"), ("comparison", "comparison"),
        ("technique", "technique"), ("final report", "findings"),
    ):  # fmt: skip
        if heading.startswith(start):
            return name
    return ""


def clean(text: Any) -> str:
    """A section's text on one line; what tables write for nothing is nothing."""
    words = " ".join(str(text or "").split())
    return "" if words.lower() in ("nan", "none", "none.", "n/a", "null", "[]") else words


def text_of(row: dict[str, Any], *names: str) -> str:
    """The first of several columns that holds something."""
    return next((str(row[name]) for name in names if row.get(name)), "")


def listed(value: Any) -> list[str]:
    """A list, or a text that spells one out."""
    if isinstance(value, list):
        return [str(item) for item in value]
    text = str(value or "").strip()
    if text.startswith("["):
        return [item.strip().strip("'\"") for item in text.strip("[]").split(",") if item.strip()]
    return [text] if text else []


def one_file(reading: Reading, pattern: str) -> Path:
    """The newest file of a pattern. Raises CorpusError when there is none."""
    found = sorted(reading.root.glob(pattern))
    if not found:
        raise CorpusError(f"{reading.root}: no {pattern}")
    return found[-1]


def csv_rows(reading: Reading, path: Path, *wanted: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Lines of a CSV, gzipped or not, with their place. Raises CorpusError for a missing file or column."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as raw:
            table = csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace", newline=""))
            if missing := [name for name in wanted if name not in (table.fieldnames or [])]:
                raise CorpusError(f"{path}: the column {missing[0]!r} is missing")
            for row in table:
                where = f"{path.name}, line {table.line_num}"
                if None in row or any(row[name] is None for name in wanted):
                    reading.say(where, "bad_line", "too many or too few columns")
                    continue
                if wanted and not row.get(wanted[0]):
                    reading.say(where, "bad_line", f"{wanted[0]} is empty")
                    continue
                yield where, row
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror or error}") from None
    except csv.Error as error:
        raise CorpusError(f"{path}: {error}") from None


def json_rows(reading: Reading, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Studies of a JSON file: a list, or an object by study."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: {error}") from None
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for number, (key, row) in enumerate(pairs, start=1):
        where = f"{path.name}, study {number}"
        if not isinstance(row, dict):
            reading.say(where, "bad_line", "a JSON object is wanted")
            continue
        yield where, ({"id": str(key)} if isinstance(content, dict) else {}) | row
