"""Lateral views: the same everywhere, true to the findings of their frontal view, which they leave as it is."""

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from echo_model.cli import main
from echo_model.data.dicom import phantom_dataset, write_phantom
from echo_model.data.labels import FINDINGS, SIDED, Finding
from echo_model.data.lateral import LateralView, lateral_view
from echo_model.data.lateral_findings import LATERAL_PAINTERS
from echo_model.data.pathology import PAINTERS
from echo_model.data.phantoms import NATIVE_SIZE, generate_phantom

NOTHING = {name: Finding(present=False) for name in FINDINGS}


def drawn(findings: dict[str, Finding]) -> LateralView:
    return lateral_view(generate_phantom(9, 1, NOTHING | findings))


def changed(findings: dict[str, Finding]) -> np.ndarray:
    return drawn(findings).image.astype(int) - drawn({}).image.astype(int)


@pytest.mark.parametrize(("seed", "index", "pixels"), [(1, 3, "74719d0ff0d2cc2b"), (2, 10, "cf2ea5ff72805f1d")])
def test_a_lateral_view_is_the_same_on_every_machine(seed: int, index: int, pixels: str) -> None:
    image = lateral_view(generate_phantom(seed, index)).image
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == pixels


def test_image_form() -> None:
    image = drawn({}).image
    assert image.shape == (NATIVE_SIZE, NATIVE_SIZE)
    assert image.dtype == np.uint8
    assert image.std() > 20


def test_every_finding_of_the_frontal_view_has_its_lateral_look() -> None:
    assert tuple(LATERAL_PAINTERS) == tuple(PAINTERS)


def test_masks_are_named_as_those_of_the_frontal_view_and_lie_where_the_image_changed() -> None:
    for index in range(12):
        phantom = generate_phantom(11, index)
        view = lateral_view(phantom)
        assert set(view.masks) == set(phantom.masks)
        assert all(mask.any() for mask in view.masks.values())
    for name in LATERAL_PAINTERS:
        side = "left" if name in SIDED else "none"
        finding = Finding(True, side, "lower", "large")  # type: ignore[arg-type]  # a literal by construction
        mask = drawn({name: finding}).masks[name if side == "none" else f"{name}.left"]
        difference = np.abs(changed({name: finding}))
        assert difference[mask].mean() > 3 * difference[~mask].mean(), name


def test_fluid_blunts_the_angle_behind_and_a_large_collection_covers_more() -> None:
    small = drawn({"pleural_effusion": Finding(True, "left", size="small")}).masks["pleural_effusion.left"]
    large = drawn({"pleural_effusion": Finding(True, "left", size="large")}).masks["pleural_effusion.left"]
    behind = np.nonzero(small)[1].mean() / NATIVE_SIZE
    assert behind > 0.5, "the patient faces the left edge"
    assert large.sum() > 2 * small.sum()
    assert changed({"pleural_effusion": Finding(True, "left", size="small")})[small].mean() > 15


def test_a_large_heart_fills_the_space_before_the_spine_and_behind_the_sternum() -> None:
    large = drawn({"cardiomegaly": Finding(True)}).masks["cardiomegaly"]
    assert large.sum() > 0.05 * NATIVE_SIZE**2
    brighter = changed({"cardiomegaly": Finding(True)}) > 15
    columns, rows = np.nonzero(brighter)[1], np.nonzero(brighter)[0]
    whole = np.nonzero(large)
    assert columns.max() > np.quantile(whole[1], 0.8)
    assert rows.min() < np.quantile(whole[0], 0.2)


@pytest.mark.parametrize("zone", ["upper", "lower"])
def test_both_views_put_a_nodule_at_one_height(zone: str) -> None:
    phantom = generate_phantom(4, 7, NOTHING | {"nodule": Finding(True, "right", zone)})  # type: ignore[arg-type]
    heights = [
        np.nonzero(view.masks["nodule.right"])[0].mean() / NATIVE_SIZE for view in (phantom, lateral_view(phantom))
    ]
    assert heights[0] == pytest.approx(heights[1], abs=0.01)


def test_export_adds_lateral_views_and_leaves_the_rest_as_it_was(tmp_path: Path) -> None:
    plain, both = tmp_path / "plain", tmp_path / "both"
    assert main(["phantoms", "--out", str(plain), "--count", "2", "--seed", "5", "--dicom"]) == 0
    assert main(["phantoms", "--out", str(both), "--count", "2", "--seed", "5", "--dicom", "--lateral"]) == 0
    for name in ("00000.png", "00000.dcm", "00001.png", "00001.dcm"):
        assert (plain / name).read_bytes() == (both / name).read_bytes()
    added = {path.name for path in both.iterdir()} - {path.name for path in plain.iterdir()}
    assert added == {f"{i:05d}-lateral.{kind}" for i in range(2) for kind in ("png", "dcm")}
    before, after = (
        [json.loads(line) for line in (folder / "labels.jsonl").read_text("utf-8").splitlines()]
        for folder in (plain, both)
    )
    assert after == [line | {"lateral": f"{line['id']}-lateral"} for line in before]
    with Image.open(both / "00001-lateral.png") as picture:
        assert np.array_equal(np.asarray(picture), lateral_view(generate_phantom(5, 1)).image)


def test_the_lateral_file_is_a_series_of_the_same_study() -> None:
    for index in range(8):
        phantom = generate_phantom(6, index)
        view = lateral_view(phantom)
        frontal, lateral = phantom_dataset(phantom), phantom_dataset(phantom, view)
        for keyword in ("StudyInstanceUID", "PatientID", "AccessionNumber", "StudyDate", "PhotometricInterpretation"):
            assert frontal[keyword].value == lateral[keyword].value
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber"):
            assert frontal[keyword].value != lateral[keyword].value
        assert (lateral.ViewPosition, list(lateral.PatientOrientation)) == ("LL", ["P", "F"])
        assert lateral.ViewCodeSequence[0].CodeValue == "399173006"
        high = (1 << lateral.BitsStored) - 1
        pixels = lateral.pixel_array.astype(np.int64)
        if lateral.PhotometricInterpretation == "MONOCHROME1":
            pixels = high - pixels
        assert np.array_equal(np.rint(pixels * 255 / high).astype(np.uint8), view.image)


@pytest.mark.needs("dicom3tools")
def test_headers_of_both_views_conform(tmp_path: Path) -> None:
    for index in range(4):
        phantom = generate_phantom(6, index)
        for name, view in (("frontal", None), ("lateral", lateral_view(phantom))):
            path = tmp_path / f"{index}-{name}.dcm"
            write_phantom(phantom, path, view)
            assert pydicom.dcmread(path).file_meta.MediaStorageSOPInstanceUID
            told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
            assert told.returncode == 0
            assert not [line for line in told.stderr.splitlines() if line.startswith(("Error", "Warning"))]
