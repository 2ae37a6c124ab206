"""Small made-up trees in the layouts of public corpora. Identifiers, texts and pictures are invented."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(path: Path, seed: int) -> None:
    """A grey image of broad random shades: unlike that of another seed, whatever it is saved as."""
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 12), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((192, 192), Image.Resampling.BICUBIC).save(path)


def table(path: Path, rows: list[dict[str, Any]]) -> None:
    """A CSV with the columns of the first row, gzipped by its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    raw = text.getvalue().encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def mimic(root: Path) -> None:
    """Two patients, three studies, four images; one lateral, one of the abdomen, one without a report."""
    images = [
        ("10000001", "50000001", "a1", "PA", "CHEST (PA AND LAT)", "train"),
        ("10000001", "50000001", "a2", "LATERAL", "CHEST (PA AND LAT)", "train"),
        ("10000001", "50000002", "a3", "AP", "ABDOMEN (SUPINE)", "train"),
        ("11000002", "50000003", "b1", "AP", "CHEST (PORTABLE AP)", "test"),
        ("11000002", "50000004", "b2", "AP", "CHEST (PORTABLE AP)", "test"),
    ]
    meta = [
        {"dicom_id": d, "subject_id": p, "study_id": s, "PerformedProcedureStepDescription": what, "ViewPosition": view}
        for p, s, d, view, what, _ in images
    ]
    splits = [{"dicom_id": d, "study_id": s, "subject_id": p, "split": split} for p, s, d, _, _, split in images]
    table(root / "mimic-cxr-2.0.0-metadata.csv.gz", meta)
    table(root / "mimic-cxr-2.0.0-split.csv.gz", splits)
    for number, (p, s, d, _, _, _) in enumerate(images):
        picture(root / "files" / f"p{p[:2]}" / f"p{p}" / f"s{s}" / f"{d}.jpg", number)
    text = (
        "                     FINAL REPORT\n INDICATION:  Cough.\n\n FINDINGS: \n \n The heart is enlarged.  "
        "There is no pleural\n effusion.\n\n IMPRESSION: \n \n Cardiomegaly.\n"
    )
    for p, s in {(p, s) for p, s, *_ in images if s != "50000004"}:
        report = root / "mimic-cxr-reports" / "files" / f"p{p[:2]}" / f"p{p}" / f"s{s}.txt"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(text if s != "50000003" else " FINAL REPORT\n Left pneumothorax, large.\n")


def chexpert(root: Path) -> None:
    """Two patients, three images; the second is kept as .png under PNG/."""
    rows = [
        ("train/patient00001/study1/view1_frontal.jpg", "Frontal", "patient00001", "", "Small left effusion.", "train"),
        ("train/patient00001/study1/view2_lateral.jpg", "Lateral", "patient00001", "", "Small left effusion.", "train"),
        ("valid/patient00002/study1/view1_frontal.jpg", "Frontal", "patient00002", "Clear lungs.", "Normal.", "valid"),
    ]
    table(
        root / "df_chexpert_plus_240401.csv",
        [
            {
                "path_to_image": path, "frontal_lateral": view, "ap_pa": "AP", "deid_patient_id": patient,
                "section_clinical_history": "Pain.", "section_findings": findings, "section_impression": impression,
                "split": split,
            }
            for path, view, patient, findings, impression, split in rows
        ],
    )  # fmt: skip
    picture(root / rows[0][0], 1)
    picture(root / "PNG" / Path(rows[1][0]).with_suffix(".png"), 2)
    picture(root / rows[2][0], 3)


def rexgradient(root: Path) -> None:
    """Three studies in JSON and CSV; one image is of another modality."""
    (root / "metadata").mkdir(parents=True)
    train = {
        "s1": {
            "PatientID": "P1", "StudyInstanceUid": "1.2.1",
            "ImagePath": ["../deid_png/P1/a.png", "../deid_png/P1/b.png"],
            "ImageViewPosition": ["PA", "LATERAL"], "ImageModality": ["CR", "CR"], "Findings": "Right nodule.",
            "Impression": "Nodule.", "Indication": "Cough.", "Comparison": "None.",
        },
        "s2": {
            "PatientID": "P2", "StudyInstanceUid": "1.2.2", "ImagePath": ["../deid_png/P2/a.png"],
            "ImageViewPosition": ["AP"], "ImageModality": ["CT"], "Findings": "x", "Impression": "x",
        },
        "s3": {"PatientID": "P3", "Findings": "no path"},
    }  # fmt: skip
    (root / "metadata" / "train_metadata.json").write_text(json.dumps(train))
    table(
        root / "metadata" / "test_metadata.csv",
        [{"PatientID": "P4", "StudyInstanceUid": "1.2.4", "ImagePath": "['../deid_png/P4/a.png']",
          "ImageViewPosition": "['POSTERO_ANTERIOR']", "Findings": "Clear lungs.", "Impression": "nan"}],
    )  # fmt: skip
    for number, name in enumerate(("P1/a", "P1/b", "P2/a", "P4/a")):
        picture(root / "deid_png" / f"{name}.png", number)


def iu(root: Path) -> None:
    """Two reports, three images, and a projection without a report."""
    table(
        root / "indiana_reports.csv",
        [
            {"uid": "1", "indication": "XX", "comparison": "None", "findings": "Clear lungs.", "impression": "Normal."},
            {"uid": "2", "indication": "", "comparison": "", "findings": "", "impression": "Cardiomegaly."},
        ],
    )  # fmt: skip
    names = [("1", "1_IM-0001-3001.dcm.png", "Frontal"), ("1", "1_IM-0001-4001.dcm.png", "Lateral")]
    names += [("2", "2_IM-0652-1001.dcm.png", "Frontal"), ("9", "9_IM-2407-1001.dcm.png", "Frontal")]
    table(root / "indiana_projections.csv", [{"uid": u, "filename": f, "projection": p} for u, f, p in names])
    for number, (_, name, _) in enumerate(names):
        picture(root / "images" / "images_normalized" / name, number)


def plain(root: Path, rows: list[dict[str, str]]) -> None:
    """A CSV of one's own with pictures 0.png, 1.png, ... for its lines."""
    table(root / "corpus.csv", [{"image": f"{number}.png"} | row for number, row in enumerate(rows)])
    for number in range(len(rows)):
        picture(root / f"{number}.png", number)
