"""From a corpus in its published layout to the one format: filtered, without near-duplicates, split by patient."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from echo_model.corpora.duplicates import hash_file, near_duplicates
from echo_model.corpora.entry import SPLITS, CorpusError, Entry, Problem, Split, hashed, write_index
from echo_model.corpora.layouts import LAYOUTS, Record
from echo_model.corpora.tables import Reading, split_of
from echo_model.data.normalise import Normaliser
from echo_model.errors import ImageError

KEY_VARIABLE: Final = "ECHO_CORPUS_KEY"
#: Modalities of plain radiographs, and body parts that are a chest. What a corpus does not say is let through.
MODALITIES: Final = frozenset({"CR", "DX", "DR", "RG", "XR", "X-RAY", "XRAY", "RADIOGRAPHY"})
_CHEST: Final = re.compile(r"chest|thora|lung|rib|port(?:able)?|cxr", re.IGNORECASE)


@dataclass(frozen=True)
class Plan:
    """What to do. ``shares``: of patients in train, validate and test where the corpus has no split of its own."""

    views: Sequence[str] = ("frontal", "lateral", "unknown")
    own_split: bool = True
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    look_at_images: bool = True

    def __post_init__(self) -> None:
        if min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise CorpusError("the shares of train, validate and test must add up to 1")


@dataclass(frozen=True)
class Converted:
    """The outcome: entries written, how many were left out by reason, and problems line by line."""

    entries: tuple[Entry, ...]
    left_out: dict[str, int]
    problems: tuple[Problem, ...]


def convert_corpus(
    layout: str,
    root: Path,
    out: Path,
    plan: Plan,
    *,
    normaliser: Normaliser | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Converted:
    """Read ``root`` in ``layout`` and write the index to ``out``; images stay where they are.

    Identifiers are hashed with the key in the environment (`ECHO_CORPUS_KEY`), else with a random one that is not kept,
    so that they cannot be traced back. Raises CorpusError when the layout is not there or nothing is left.
    """
    if layout not in LAYOUTS:
        raise CorpusError(f"{layout!r} is no layout; there are {', '.join(LAYOUTS)}")
    reading = Reading(root)
    left_out: Counter[str] = Counter()
    records = [record for record in LAYOUTS[layout](reading) if _wanted(record, plan, left_out)]
    records, hashes = _with_images(reading, records, plan, left_out, progress)
    splits = _splits(reading, records, plan)
    key = os.environ.get(KEY_VARIABLE, "").encode() or secrets.token_bytes(32)
    entries = [
        _entry(record, number, layout, splits[record.patient], key, normaliser)
        for number, record in enumerate(records, start=1)
    ]
    if hashes:
        repeated = near_duplicates(hashes, [entry.report for entry in entries])
        for place, first in repeated.items():
            reading.say(
                entries[place].where, "near_duplicate", f"repeats the image and report of {entries[first].where}",
                is_error=False,
            )  # fmt: skip
            left_out["near_duplicate"] += 1
        entries = [entry for place, entry in enumerate(entries) if place not in repeated]
    if not entries:
        raise CorpusError(f"{root}: nothing is left ({_told(left_out)})")
    about = {"left_out": dict(left_out), "splits": dict(Counter(entry.split for entry in entries)), "seed": plan.seed}
    write_index(out, entries, root=root, source=layout, about=about)
    return Converted(tuple(entries), dict(left_out), tuple(reading.problems))


def _wanted(record: Record, plan: Plan, left_out: Counter[str]) -> bool:
    reason = ""
    if record.modality and record.modality.upper() not in MODALITIES:
        reason = "modality"
    elif record.body_part and not _CHEST.search(record.body_part):
        reason = "body_part"
    elif record.view not in plan.views:
        reason = "view"
    elif not record.sections.get("findings") and not record.sections.get("impression"):
        reason = "no_text"
    if reason:
        left_out[reason] += 1
    return not reason


def _with_images(
    reading: Reading, records: Sequence[Record], plan: Plan, left_out: Counter[str], progress: Callable[[int], None]
) -> tuple[list[Record], list[int]]:
    """The records whose image is there (and can be read, when images are looked at), with their image hashes."""
    kept: list[Record] = []
    hashes: list[int] = []
    for number, record in enumerate(records, start=1):
        path = reading.root / record.image
        try:
            if plan.look_at_images:
                hashes.append(hash_file(path))
            elif not path.is_file():
                raise ImageError("missing", "no such file")
        except ImageError:
            reading.say(record.where, "bad_image", "the image is missing or cannot be read")
            left_out["bad_image"] += 1
            continue
        kept.append(record)
        progress(number)
    return kept, hashes


def _splits(reading: Reading, records: Iterable[Record], plan: Plan) -> dict[str, Split]:
    """One split a patient: the published one, the strictest of several, else by a hash of patient and seed."""
    published: dict[str, set[str]] = defaultdict(set)
    first: dict[str, str] = {}
    for record in records:
        first.setdefault(record.patient, record.where)
        published[record.patient].add(split_of(record.split) if plan.own_split else "")
    splits: dict[str, Split] = {}
    for patient, names in published.items():
        known = [name for name in SPLITS if name in names]
        if len(known) > 1:
            reading.say(
                first[patient], "patient_in_two_splits", f"all images of this patient go to {known[-1]}", is_error=False
            )
        splits[patient] = _as_split(known[-1]) if known else _drawn(patient, plan)
    return splits


def _drawn(patient: str, plan: Plan) -> Split:
    digest = hashlib.sha256(f"{plan.seed}\0{patient}".encode()).digest()
    draw = int.from_bytes(digest[:8]) / 2**64
    train, validate, _ = plan.shares
    return "train" if draw < train else "validate" if draw < train + validate else "test"


def _as_split(name: str) -> Split:
    return "train" if name == "train" else "validate" if name == "validate" else "test"


def _entry(record: Record, number: int, layout: str, split: Split, key: bytes, normaliser: Normaliser | None) -> Entry:
    entry = Entry(
        id=f"{layout}-{number:07d}",
        image=record.image.as_posix(),
        view=record.view,
        sections=record.sections,
        patient=hashed(key, "patient", record.patient),
        study=hashed(key, "study", f"{record.patient}\0{record.study}"),
        split=split,
        source=layout,
        where=record.where,
    )
    if normaliser is None:
        return entry
    made = normaliser.normalise(entry.report)
    return replace(entry, normalised={"findings": made.findings, "impression": made.impression})


def _told(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "it has no entries"
