"""Phantoms as files: PNG, DICOM and their truth."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from echo_model.data.dicom import DX_PRESENTATION, phantom_uid, write_phantom
from echo_model.data.export import export_phantoms
from echo_model.data.labels import FINDINGS
from echo_model.data.phantoms import generate_phantom


def test_export_writes_what_it_says(tmp_path: Path) -> None:
    export_phantoms(tmp_path / "out", 3, 5, dicom=True)
    names = {f"{i:05d}.{kind}" for i in range(3) for kind in ("png", "dcm")} | {"labels.jsonl"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    lines = [json.loads(line) for line in (tmp_path / "out" / "labels.jsonl").read_text("utf-8").splitlines()]
    for index, line in enumerate(lines):
        phantom = generate_phantom(5, index)
        assert line["id"] == f"{index:05d}"
        assert set(line["findings"]) == set(FINDINGS)
        assert all(f["present"] == phantom.findings[n].present for n, f in line["findings"].items())
        assert all(f["side"] in ("left", "right", "both", "none") for f in line["findings"].values())
        assert (line["report"], line["raw_report"]) == (phantom.report, phantom.raw_report)
        with Image.open(tmp_path / "out" / f"{index:05d}.png") as picture:
            assert np.array_equal(np.asarray(picture), phantom.image)


def test_without_dicom_none_is_written(tmp_path: Path) -> None:
    export_phantoms(tmp_path, 1, 5)
    assert not list(tmp_path.glob("*.dcm"))


def test_a_count_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        export_phantoms(tmp_path, 0, 5)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[pydicom.FileDataset]:
    folder = tmp_path_factory.mktemp("dicom")
    for index in range(24):
        write_phantom(generate_phantom(6, index), folder / f"{index}.dcm")
    return [pydicom.dcmread(folder / f"{index}.dcm") for index in range(24)]


def test_every_phantom_is_a_patient_and_a_study_of_its_own(files: list[pydicom.FileDataset]) -> None:
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert len({str(ds[keyword].value) for ds in files}) == 24, keyword
    assert len({ds.AccessionNumber for ds in files}) == 24


def test_dicom_says_what_it_is(files: list[pydicom.FileDataset]) -> None:
    for ds in files:
        assert ds.SOPClassUID == ds.file_meta.MediaStorageSOPClassUID == DX_PRESENTATION
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert str(ds.PatientName).startswith("PHANTOM^")
        assert ds.PatientID.startswith("PHANTOM-")
        assert len(ds.AccessionNumber) <= 16
        assert (ds.Modality, ds.BodyPartExamined, ds.ViewPosition) == ("DX", "CHEST", "PA")
        assert ds.StudyInstanceUID.startswith("2.25.")
        assert len(ds.StudyInstanceUID) <= 64
        assert ds.StudyInstanceUID.is_valid


def test_pixels_come_back_whatever_the_storage(files: list[pydicom.FileDataset]) -> None:
    kinds = set()
    for index, ds in enumerate(files):
        high = (1 << ds.BitsStored) - 1
        pixels = ds.pixel_array.astype(np.int64)
        if ds.PhotometricInterpretation == "MONOCHROME1":
            pixels = high - pixels
        assert np.array_equal(np.rint(pixels * 255 / high).astype(np.uint8), generate_phantom(6, index).image)
        kinds.add((ds.PhotometricInterpretation, ds.BitsStored))
    assert kinds == {("MONOCHROME1", 12), ("MONOCHROME1", 16), ("MONOCHROME2", 12), ("MONOCHROME2", 16)}


def test_uids_repeat_and_differ() -> None:
    assert phantom_uid(1, 2, "study") == phantom_uid(1, 2, "study")
    assert len({phantom_uid(s, i, k) for s in (1, 2) for i in (1, 2) for k in ("study", "series", "instance")}) == 12
