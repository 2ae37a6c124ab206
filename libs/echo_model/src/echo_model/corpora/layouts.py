"""Reads the directory layouts of public corpora and a plain CSV, as their documentation describes them.

A layout yields one `Record` an image with raw identifiers, which never leave this process, and tells what it could not
read. No corpus is fetched: each has its own terms, and is obtained from whoever publishes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from echo_model.corpora.entry import SECTIONS, CorpusError, View
from echo_model.corpora.tables import (
    SPLIT_NAMES,
    Reading,
    clean,
    csv_rows,
    json_rows,
    listed,
    one_file,
    split_report,
    text_of,
    view_of,
)


@dataclass(frozen=True)
class Record:
    """One image as its corpus has it: raw identifiers, ``split`` as published or empty, ``where``: file and line."""

    image: Path
    view: View
    sections: dict[str, str]
    patient: str
    study: str
    split: str
    where: str
    modality: str = ""
    body_part: str = ""


Layout = Callable[[Reading], Iterator[Record]]


def mimic_cxr_jpg(reading: Reading) -> Iterator[Record]:
    """MIMIC-CXR-JPG: `files/p10/p<subject>/s<study>/<dicom>.jpg`, `mimic-cxr-*-metadata.csv*` and `-split.csv*`.

    The reports come with MIMIC-CXR: `files/p10/p<subject>/s<study>.txt`, here or in `mimic-cxr-reports/`.
    """
    splits = {
        row["dicom_id"]: row.get("split", "")
        for _, row in csv_rows(reading, one_file(reading, "mimic-cxr-*-split.csv*"))
    }
    reports: dict[str, dict[str, str] | None] = {}
    for where, row in csv_rows(
        reading, one_file(reading, "mimic-cxr-*-metadata.csv*"), "dicom_id", "subject_id", "study_id"
    ):
        subject, study = row["subject_id"], row["study_id"]
        place = Path("files") / f"p{subject[:2]}" / f"p{subject}" / f"s{study}"
        if study not in reports:
            reports[study] = _mimic_report(reading.root, place.with_suffix(".txt"))
        sections = reports[study]
        if sections is None:
            reading.say(where, "no_report", "the report of this study is not there")
            continue
        procedure = row.get("PerformedProcedureStepDescription") or row.get("ProcedureCodeSequence_CodeMeaning") or ""
        yield Record(
            place / f"{row['dicom_id']}.jpg",
            view_of(row.get("ViewPosition", "")),
            sections,
            subject,
            study,
            splits.get(row["dicom_id"], ""),
            where,
            body_part=procedure,
        )


def _mimic_report(root: Path, place: Path) -> dict[str, str] | None:
    for base in (root, root / "mimic-cxr-reports"):
        if (base / place).is_file():
            return split_report((base / place).read_text(encoding="utf-8", errors="replace"))
    return None


def chexpert_plus(reading: Reading) -> Iterator[Record]:
    """CheXpert Plus: `df_chexpert_plus_*.csv` and images by its `path_to_image`, as .png or .jpg, here or in `PNG/`."""
    table = one_file(reading, "df_chexpert_plus_*.csv*")
    names = {"clinical_history": "history", "history": "history"} | {name: name for name in SECTIONS}
    for where, row in csv_rows(
        reading, table, "path_to_image", "deid_patient_id", "section_findings", "section_impression"
    ):
        sections = {names[key]: text for key in names if (text := clean(row.get(f"section_{key}")))}
        image = Path(row["path_to_image"])
        places = [
            base / image.with_suffix(suffix) for base in (Path(), Path("PNG")) for suffix in (".png", image.suffix)
        ]
        yield Record(
            next((place for place in places if (reading.root / place).is_file()), places[0]),
            view_of(row.get("frontal_lateral", "")),
            sections,
            row["deid_patient_id"],
            str(image.parent),
            row.get("split") or image.parts[0],
            where,
        )


def rexgradient(reading: Reading) -> Iterator[Record]:
    """ReXGradient-160K: `metadata/{train,valid,test}_metadata*.json|csv`, images by `ImagePath` below here."""
    tables = sorted(
        path
        for path in (reading.root / "metadata").glob("*_metadata*")
        if path.suffix in (".json", ".csv") and path.name.split("_")[0] in SPLIT_NAMES
    )
    if not tables:
        raise CorpusError(f"{reading.root / 'metadata'}: no train_metadata.json, .csv or the like")
    seen: set[str] = set()
    for table in tables:
        split = table.name.split("_")[0]
        if split in seen:  # the same split as .json and as .csv, or with the view positions
            continue
        seen.add(split)
        rows = csv_rows(reading, table) if table.suffix == ".csv" else json_rows(reading, table)
        for where, row in rows:
            paths, views, kinds = (listed(row.get(key)) for key in ("ImagePath", "ImageViewPosition", "ImageModality"))
            study = text_of(row, "StudyInstanceUid", "StudyInstanceUID", "AccessionNumber", "id")
            patient = text_of(row, "PatientID", "PatientId", "patient_id")
            if not paths or not study or not patient:
                reading.say(where, "bad_line", "ImagePath, StudyInstanceUid or PatientID is missing")
                continue
            sections = {name: text for name in SECTIONS if (text := clean(row.get(name.capitalize())))}
            for place, path in enumerate(paths):
                yield Record(
                    Path(re.sub(r"^(?:\.{1,2}/)+", "", path)),
                    view_of(views[place] if place < len(views) else ""),
                    sections,
                    patient,
                    study,
                    split,
                    where,
                    kinds[place] if place < len(kinds) else "",
                )


def iu_xray(reading: Reading) -> Iterator[Record]:
    """IU X-ray: `indiana_reports.csv`, `indiana_projections.csv`, images in `images/images_normalized/` or the like.

    It names no patients: every report counts as a patient of its own.
    """
    reports = {
        row["uid"]: row
        for _, row in csv_rows(reading, one_file(reading, "indiana_reports.csv"), "uid", "findings", "impression")
    }
    for where, row in csv_rows(reading, one_file(reading, "indiana_projections.csv"), "uid", "filename"):
        report = reports.get(row["uid"])
        if report is None:
            reading.say(where, "no_report", "no line of indiana_reports.csv has this uid")
            continue
        bases = (Path("images/images_normalized"), Path("images_normalized"), Path("images"), Path())
        places = [base / row["filename"] for base in bases]
        yield Record(
            next((place for place in places if (reading.root / place).is_file()), places[0]),
            view_of(row.get("projection", "")),
            {name: text for name in SECTIONS if (text := clean(report.get(name)))},
            row["uid"],
            row["uid"],
            "",
            where,
        )


def plain_csv(reading: Reading) -> Iterator[Record]:
    """A CSV of your own, `corpus.csv`: `image`, and `report` or `findings` and `impression`; all else may be missing.

    Optional: `patient` (else every line is one), `study`, `view`, `split`, `modality`, `body_part`, and the sections.
    """
    for where, row in csv_rows(reading, reading.root / "corpus.csv", "image"):
        sections = {name: text for name in SECTIONS if (text := clean(row.get(name)))}
        if not sections.get("findings") and not sections.get("impression") and row.get("report"):
            sections |= split_report(row["report"])
        image = Path(row["image"])
        if image.is_absolute() or ".." in image.parts:
            reading.say(where, "bad_path", "the image must be a path below the folder of the CSV")
            continue
        yield Record(
            image,
            view_of(row.get("view") or ""),
            sections,
            row.get("patient") or f"line {where}",
            row.get("study") or str(image),
            row.get("split") or "",
            where,
            row.get("modality") or "",
            row.get("body_part") or "",
        )


LAYOUTS: Final[dict[str, Layout]] = {
    "mimic-cxr-jpg": mimic_cxr_jpg,
    "chexpert-plus": chexpert_plus,
    "rexgradient": rexgradient,
    "iu-xray": iu_xray,
    "csv": plain_csv,
}
