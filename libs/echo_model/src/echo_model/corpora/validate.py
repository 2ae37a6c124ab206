"""Says what is wrong with a corpus in the one format, line by line."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from echo_model.corpora.duplicates import image_hash, near_duplicates
from echo_model.corpora.entry import Entry, Problem, image_root, read_index
from echo_model.data.findings import extract_findings
from echo_model.data.normalise import label_changes
from echo_model.errors import ImageError
from echo_model.images import Picture, read_image

SMALLEST_EDGE: Final = 128
SHORTEST: Final = 3
LONGEST: Final = 500
"""Words of a report that are not suspicious."""

_IDENTIFIERS: Final = re.compile(
    r"\b(?:mrn|accession|dob|patient (?:id|name))\b\s*[:#]|\b\d{1,2}/\d{1,2}/\d{2,4}\b|\b(?:19|20)\d\d-\d\d-\d\d\b"
    r"|\b\d{3}[-. ]\d{3}[-. ]\d{4}\b|\b[\w.]+@[\w.]+\.\w+\b|\b(?:Dr|Mr|Mrs|Ms)\.? [A-Z][a-z]+",
)


def validate_corpus(
    folder: Path, *, look_at_images: bool = True, progress: Callable[[int], None] = lambda done: None
) -> tuple[int, list[Problem]]:
    """Number of sound lines, and every problem in the order of the lines. Raises CorpusError when there is no index.

    Errors: broken lines, repeated ids, images that are missing or unreadable, reports without text, a patient in two
    splits, a normalised text that says something else. Warnings: near-duplicates, one text for two studies of one
    patient in two views aside, odd lengths, colour or tiny images, what looks like an identifier, another language.
    """
    entries, problems = read_index(folder)
    root = image_root(folder)
    by_entry: dict[str, list[Problem]] = defaultdict(list)
    seen: dict[str, str] = {}
    splits: dict[str, tuple[str, str]] = {}
    hashes: list[int] = []
    hashed: list[Entry] = []
    for number, entry in enumerate(entries, start=1):
        found = by_entry[entry.where]
        if entry.id in seen:
            found.append(Problem(entry.where, "repeated_id", f"the id of {seen[entry.id]} again"))
        seen.setdefault(entry.id, entry.where)
        split, first = splits.setdefault(entry.patient, (entry.split, entry.where))
        if split != entry.split:
            found.append(Problem(entry.where, "patient_in_two_splits", f"{entry.split} here, {split} in {first}"))
        found.extend(_text_problems(entry))
        path = root / entry.image
        if not look_at_images:
            if not path.is_file():
                found.append(Problem(entry.where, "bad_image", "no such file"))
            continue
        try:
            picture = read_image(path)
        except ImageError as error:
            found.append(Problem(entry.where, "bad_image", error.code))
            continue
        found.extend(_image_problems(entry, picture))
        hashes.append(image_hash(picture))
        hashed.append(entry)
        progress(number)
    for place, first_place in near_duplicates(hashes, [entry.report for entry in hashed]).items():
        where = hashed[place].where
        message = f"image and report of {hashed[first_place].where} again"
        by_entry[where].append(Problem(where, "near_duplicate", message, is_error=False))
    problems += [problem for found in by_entry.values() for problem in found]
    return len(entries), sorted(problems, key=lambda problem: int(problem.where.rsplit(" ", 1)[-1]))


def _text_problems(entry: Entry) -> list[Problem]:
    def warn(code: str, message: str) -> Problem:
        return Problem(entry.where, code, message, is_error=False)

    found: list[Problem] = []
    findings, impression = entry.sections.get("findings", ""), entry.sections.get("impression", "")
    written = f"{findings} {impression}".strip()
    words = len(written.split())
    if not words:
        return [Problem(entry.where, "no_text", "neither findings nor impression")]
    if words < SHORTEST:
        found.append(warn("short_text", f"{words} words"))
    if words > LONGEST:
        found.append(warn("long_text", f"{words} words"))
    letters = [sign for sign in written if sign.isalpha()]
    if sum(sign.isascii() for sign in letters) < 0.9 * len(letters):
        found.append(warn("not_english", "the finding extractor reads English alone"))
    if _IDENTIFIERS.search(" ".join(entry.sections.values())):
        found.append(warn("identifier", "a date, number or name that may identify somebody"))
    if entry.normalised is not None:
        text = " ".join(entry.normalised.get(name, "") for name in ("findings", "impression"))
        for change in label_changes(f"Findings: {findings} Impression: {impression}", text):
            found.append(Problem(entry.where, "normalised_differs", change))
    elif not extract_findings(written):
        found.append(warn("no_finding", "the extractor reads nothing in this report"))
    return found


def _image_problems(entry: Entry, picture: Picture) -> list[Problem]:
    def warn(code: str, message: str) -> Problem:
        return Problem(entry.where, code, message, is_error=False)

    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    found: list[Problem] = []
    if min(height, width) < SMALLEST_EDGE:
        found.append(warn("small_image", f"{width} x {height} pixels"))
    if max(height, width) > 2 * min(height, width):
        found.append(warn("odd_shape", f"{width} x {height} pixels"))
    if pixels.ndim == 3 and pixels.shape[2] >= 3 and int(np.ptp(pixels[..., :3].astype(np.int16), axis=2).max()) > 24:
        found.append(warn("colour", "a radiograph has none"))
    if float(pixels.max()) == float(pixels.min()):
        found.append(warn("blank_image", "all pixels are alike"))
    return found
