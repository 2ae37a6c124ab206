"""What the shipped model takes for images of another kind: real radiographs and other pictures, but not phantoms.

REAL_RADIOGRAPHS=DIR names a folder of real chest radiographs (DICOM, PNG, JPEG) to measure on; without it the one that
the demonstration ships is taken.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFilter
from pydicom.data import get_testdata_file

from echo_model import demo_checkpoint_path
from echo_model.cli import main
from echo_model.data.lateral import lateral_view
from echo_model.data.phantoms import generate_phantom
from echo_model.domain_score import FILE_NAME, DomainModel, image_features
from echo_model.model import load_model
from unit.echo_model.tiny_checkpoint import tiny_model, write_checkpoint

Grey = npt.NDArray[np.uint8]
SHIPPED = Path(__file__).parents[3] / "services/standalone/src/standalone/demo_data"
SEED = 424_242  # a series that nothing was trained or fitted on


@pytest.fixture(scope="module")
def score() -> Callable[[Grey], float]:
    loaded = load_model(demo_checkpoint_path())
    domain = DomainModel.load(loaded.path / FILE_NAME)
    return lambda image: domain.score(image_features(loaded, image))


def stretched(pixels: npt.NDArray[Any]) -> Grey:
    values = pixels.astype(np.float32)
    return (255 * (values - values.min()) / max(float(np.ptp(values)), 1.0)).astype(np.uint8)


def dicom(path: Path | str) -> Grey:
    ds = pydicom.dcmread(path)
    pixels = stretched(ds.pixel_array)
    return 255 - pixels if ds.PhotometricInterpretation == "MONOCHROME1" else pixels


@pytest.fixture(scope="module")
def radiographs() -> dict[str, Grey]:
    folder = Path(os.environ.get("REAL_RADIOGRAPHS") or SHIPPED)
    films = {path.name: dicom(path) for path in sorted(folder.glob("*.dcm"))}
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg")):
        with Image.open(path) as picture:
            films[path.name] = stretched(np.asarray(picture.convert("F")))
    assert films, f"no radiograph in {folder}"
    return films


def middle(film: Grey, share: float) -> Grey:
    height, width = (int(edge * share) for edge in film.shape)
    top, left = (film.shape[0] - height) // 2, (film.shape[1] - width) // 2
    return film[top : top + height, left : left + width]


def smooth(film: Grey) -> Grey:
    """As coarse and soft as a phantom, so that sharpness alone does not tell them apart."""
    small = Image.fromarray(film).resize((224, 224), Image.Resampling.BICUBIC)
    return np.asarray(small.filter(ImageFilter.GaussianBlur(1.0)))


CHANGES: dict[str, Callable[[Grey], Grey]] = {
    "as it is": lambda film: film,
    "negative": lambda film: (255 - film).astype(np.uint8),
    "quarter turn": lambda film: np.rot90(film).copy(),
    "upside down": lambda film: np.rot90(film, 2).copy(),
    "cropped": lambda film: middle(film, 0.7),
    "cropped closely": lambda film: middle(film, 0.4),
    "small and soft": smooth,
    "dark": lambda film: film // 2,
}


@pytest.mark.parametrize("change", CHANGES)
def test_real_radiographs_are_out_of_domain(
    score: Callable[[Grey], float], radiographs: dict[str, Grey], change: str
) -> None:
    scores = {name: score(CHANGES[change](film)) for name, film in radiographs.items()}
    missed = [name for name, value in scores.items() if value <= 1.0]
    assert len(missed) <= 0.05 * len(scores), missed


def test_phantoms_are_in_domain(score: Callable[[Grey], float]) -> None:
    flagged = sum(score(generate_phantom(SEED, index).image) > 1.0 for index in range(100))
    assert flagged <= 5


def drawn(kind: str) -> Grey:
    """Outlines of what is no chest, with grain."""
    picture = Image.new("L", (256, 256), 30)
    pen = ImageDraw.Draw(picture)
    if kind == "skull":
        pen.ellipse((60, 20, 200, 235), fill=150)
        pen.ellipse((80, 50, 180, 200), fill=90)
    elif kind == "hand":
        for finger in range(5):
            pen.rounded_rectangle((50 + finger * 32, 30 + 10 * abs(finger - 2), 72 + finger * 32, 150), 10, fill=170)
        pen.rounded_rectangle((50, 130, 200, 240), 25, fill=170)
    elif kind == "knee":
        pen.rectangle((110, 0, 150, 120), fill=190)
        pen.rectangle((105, 130, 155, 256), fill=190)
        pen.ellipse((90, 95, 170, 160), fill=200)
    elif kind == "text":
        for line in range(20):
            pen.text((8, 8 + 12 * line), "one line of a printed page"[line % 9 :], fill=220)
    grain = np.random.default_rng(1).normal(0, 5, (256, 256))
    return np.clip(np.asarray(picture.filter(ImageFilter.GaussianBlur(1.5))) + grain, 0, 255).astype(np.uint8)


def photo_like() -> Grey:
    """Noise of several scales, as photographs have."""
    rng = np.random.default_rng(2)
    layers = [
        weight * np.asarray(Image.fromarray(stretched(rng.random((cells, cells)))).resize((256, 256)), dtype=float)
        for cells, weight in ((3, 0.5), (8, 0.25), (24, 0.15), (80, 0.1))
    ]
    return np.sum(layers, axis=0).astype(np.uint8)


def test_what_is_no_chest_is_out_of_domain(score: Callable[[Grey], float]) -> None:
    pictures = {kind: drawn(kind) for kind in ("skull", "hand", "knee", "text")}
    pictures |= {f"blank {grey}": np.full((224, 224), grey, np.uint8) for grey in (0, 60, 128, 255)}
    pictures |= {"photograph": photo_like(), "noise": stretched(np.random.default_rng(3).random((224, 224)))}
    for name in ("CT_small.dcm", "MR_small.dcm"):
        file = get_testdata_file(name, download=False)
        assert isinstance(file, str)
        pictures[name] = dicom(file)
    scores = {name: score(picture) for name, picture in pictures.items()}
    assert min(scores.values()) > 1.0, scores


def test_a_view_that_was_not_learnt_is_mostly_out_of_domain(score: Callable[[Grey], float]) -> None:
    scores = [score(lateral_view(generate_phantom(SEED, index)).image) for index in range(20)]
    assert np.median(scores) > 1.0


def test_command_scores_files_folders_and_phantoms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "blank.png")
    Image.fromarray(generate_phantom(SEED, 0).image).save(tmp_path / "phantom.png")
    file = tmp_path / "scores.json"
    arguments = ["domain", str(tmp_path), "--phantoms", "3", "--seed", str(SEED), "--json", str(file)]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "images: 1 of 2 out of domain (50.0%)" in told
    assert "phantoms: 0 of 3 out of domain (0.0%)" in told
    result = json.loads(file.read_text("utf-8"))
    assert [row["score"] > 1.0 for row in result["images"]] == [True, False]
    assert result["images"][1]["score"] == max(result["images"][1][part] for part in ("tower", "pixels"))
    assert result["images"][1]["score"] == pytest.approx(result["phantoms"][0])


def test_command_refuses_what_it_cannot_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    checkpoint = write_checkpoint(tmp_path / "tiny", tiny_model(3))
    for arguments, reason in (
        ([], "name an image"),
        ([str(tmp_path / "empty")], "in this folder"),
        ([str(tmp_path / "none.png")], "no such file"),
        (["--phantoms", "-1"], "must not be negative"),
        (["--phantoms", "1", "--json", str(tmp_path / "no" / "file.json")], "its folder does not exist"),
        (["--model", str(checkpoint), "--phantoms", "1"], FILE_NAME),
    ):
        assert main(["domain", *arguments]) == 2
        assert reason in capsys.readouterr().err
