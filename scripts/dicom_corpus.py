"""DICOM files and a table of reports in, what `echo-model corpus convert csv` reads out.

    python scripts/dicom_corpus.py DICOM_DIR REPORTS.csv OUT

The table has a column `study` (a StudyInstanceUID or an AccessionNumber) and either `report` or `findings` and
`impression`. Pictures are rendered to 8-bit PNG files by the decoder of the inference worker, so that a model learns
from what it will be shown. Written are OUT/images and OUT/corpus.csv, which still names patients: conversion hashes
the identifiers, removing them from pixels and texts is up to you. Files without pixels or report are told and left out.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from inference_worker.adapters.pixels import PydicomDecoder
from inference_worker.domain import Fault

MAX_PIXELS, MAX_BYTES = 80_000_000, 500_000_000
TEXTS = ("report", "findings", "impression")
COLUMNS = ("image", "patient", "study", "view", "modality", "body_part", *TEXTS)


def read_reports(table: Path) -> dict[str, dict[str, str]]:
    """The texts of each study. Raises ValueError for a table without the columns."""
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        names = set(rows.fieldnames or ())
        if "study" not in names or not names & set(TEXTS):
            raise ValueError(f"{table}: a column 'study' and one of {', '.join(TEXTS)} are wanted")
        return {row["study"]: {name: row.get(name) or "" for name in TEXTS} for row in rows}


def render(
    folder: Path, reports: dict[str, dict[str, str]], out: Path, left_out: Counter[str]
) -> Iterator[dict[str, str]]:
    """Write the picture of every file that has a report; yields its line of the table."""
    decoder = PydicomDecoder(MAX_PIXELS, MAX_BYTES, 1)
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        try:
            header = dcmread(path, stop_before_pixels=True)
        except InvalidDicomError:
            left_out["not_dicom"] += 1
            continue
        names = [str(header.get(keyword, "")) for keyword in ("StudyInstanceUID", "AccessionNumber")]
        texts = next((reports[name] for name in names if name in reports), None)
        if texts is None:
            left_out["no_report"] += 1
            continue
        try:
            with path.open("rb") as file:
                picture = decoder.decode(file)
        except Fault as fault:
            left_out[fault.code] += 1
            continue
        image = Path("images") / f"{number:08d}.png"
        Image.fromarray(picture).save(out / image)
        yield {"image": image.as_posix(), "study": names[0], **_about(header), **texts}


def _about(header: Any) -> dict[str, str]:
    """What the header says of patient and picture."""
    view = header.get("ViewPosition") or header.get("SeriesDescription") or ""
    return {
        "patient": str(header.get("PatientID", "")),
        "view": str(view),
        "modality": str(header.get("Modality", "")),
        "body_part": str(header.get("BodyPartExamined", "")),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DICOM_DIR")
    parser.add_argument("reports", type=Path, metavar="REPORTS.csv")
    parser.add_argument("out", type=Path, metavar="OUT")
    args = parser.parse_args(argv)
    try:
        reports = read_reports(args.reports)
    except (OSError, ValueError) as error:
        print(f"dicom_corpus: {error}", file=sys.stderr)
        return 2
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    left_out: Counter[str] = Counter()
    written = 0
    with (args.out / "corpus.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for row in render(args.folder, reports, args.out, left_out):
            table.writerow(row)
            written += 1
    print(f"{written} pictures in {args.out}")
    if left_out:
        print("left out: " + ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
