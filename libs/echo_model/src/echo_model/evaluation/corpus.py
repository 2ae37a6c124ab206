"""Reads what is evaluated: a folder as ``echo-model phantoms`` writes it, or a corpus in the one format of `corpora`.

A folder of phantoms has ``<id>.png`` and a line of ``labels.jsonl`` each, with the truth. A corpus has reports alone:
there the finding extractor reads the reference report, so that scores say how far two texts agree, not who is right.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from echo_model.corpora.entry import INDEX, CorpusError, by_study, image_root, read_index
from echo_model.data.findings import extract_findings
from echo_model.data.labels import FINDINGS, Finding, Side
from echo_model.errors import ImageError
from echo_model.images import read_image

LABELS = "labels.jsonl"


@dataclass(frozen=True)
class CorpusEntry:
    """One labelled image, or one study: ``others`` are its further views. ``report`` is the reference text."""

    image: Path
    findings: dict[str, Finding]
    report: str
    others: tuple[Path, ...] = ()


def read_corpus(folder: Path, split: str | None = None, views: int = 1) -> list[CorpusEntry]:
    """All entries of ``folder`` in the order of its lines, of one split if named; blank lines are passed over.

    With more than one of ``views`` an entry is a study with so many images at most, frontal ones first. Every image is
    opened once, so that a broken one is told before hours of work. Raises CorpusError.
    """
    if (folder / INDEX).is_file():
        return _read_index(folder, split, views)
    if split is not None:
        raise CorpusError(f"{folder}: a folder of phantoms has no splits")
    labels = folder / LABELS
    try:
        lines = labels.read_bytes().splitlines()
    except OSError as error:
        raise CorpusError(f"{labels}: {error.strerror or error}") from None
    entries: list[CorpusEntry] = []
    seen: dict[Path, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = _entry(folder, line)
            if entry.image in seen:
                raise CorpusError(f"the id of line {seen[entry.image]} again")
            read_image(entry.image)
        except (CorpusError, ImageError) as error:
            raise CorpusError(f"{labels}, line {number}: {error}") from None
        seen[entry.image] = number
        entries.append(entry)
    if not entries:
        raise CorpusError(f"{labels}: no entry")
    return entries


def _read_index(folder: Path, split: str | None, views: int) -> list[CorpusEntry]:
    """Entries of a corpus in the one format."""
    rows, problems = read_index(folder)
    if problems:
        raise CorpusError(f"{folder}: {problems[0]}")
    root = image_root(folder)
    entries: list[CorpusEntry] = []
    wanted = [row for row in rows if split in (None, row.split)]
    for study in by_study(wanted, views) if views > 1 else [[row] for row in wanted]:
        for row in study:
            try:
                read_image(root / row.image)
            except ImageError as error:
                raise CorpusError(f"{folder}: {row.where}: {error}") from None
        first, *others = (root / row.image for row in study)
        report = study[0].report
        entries.append(CorpusEntry(first, said_findings(report), report, tuple(others)))
    if not entries:
        raise CorpusError(f"{folder}: no entry" + (f" of the split {split!r}" if split else ""))
    return entries


def said_findings(report: str) -> dict[str, Finding]:
    """What a report says is there; what it hedges counts as absent, as it does in a generated text."""
    said = extract_findings(report)
    return {
        name: Finding(True, said[name].side)
        if name in said and said[name].state == "present"
        else Finding(present=False)
        for name in FINDINGS
    }


def _entry(folder: Path, line: bytes) -> CorpusEntry:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise CorpusError(f"not JSON ({error})") from None
    if not isinstance(row, dict):
        raise CorpusError("a JSON object is wanted")
    for key, kind in (("id", str), ("findings", dict), ("report", str)):
        if not isinstance(row.get(key), kind):
            raise CorpusError(f'"{key}" is missing or of the wrong type')
    name: str = row["id"]
    if not name or name in {".", ".."} or any(sign in name for sign in "/\\\0"):
        raise CorpusError(f'"id" {name!r} is no file name')
    return CorpusEntry(folder / f"{name}.png", _findings(row["findings"]), row["report"])


def _findings(raw: dict[str, Any]) -> dict[str, Finding]:
    """All findings, no other: one that is not labelled would be counted as absent."""
    if odd := sorted(raw.keys() ^ set(FINDINGS)):
        what = "is missing" if odd[0] in FINDINGS else "is not known"
        raise CorpusError(f"finding {odd[0]!r} {what}")
    findings = {}
    for name in FINDINGS:
        value = raw[name]
        if not isinstance(value, dict) or not isinstance(value.get("present"), bool):
            raise CorpusError(f'finding {name!r}: "present" must be true or false')
        if value.get("side") not in get_args(Side):
            raise CorpusError(f'finding {name!r}: "side" must be one of {", ".join(get_args(Side))}')
        findings[name] = Finding(value["present"], value["side"])
    return findings
