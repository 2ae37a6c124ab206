"""The plain look at what a picture shows: drawn shapes, phantoms and one real radiograph."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from echo_model.data.phantoms import generate_phantom
from inference_worker.adapters.frontal import looks_frontal
from inference_worker.adapters.pixels import PydicomDecoder

RADIOGRAPH = Path(__file__).parents[3] / "services/standalone/src/standalone/demo_data/nih-google-nofinding.dcm"
Y, X = np.mgrid[-1:1:300j, -1:1:300j]
AIR = 5.0


def fingers() -> npt.NDArray[np.float64]:
    hand = np.full(X.shape, AIR)
    for center in (-0.6, -0.3, 0.0, 0.3, 0.6):
        hand += np.where(abs(X - center) < 0.09, 100, 0) + np.where(abs(X - center) < 0.04, 80, 0)
    return hand


OTHERS: dict[str, npt.NDArray[np.float64]] = {
    "knee": np.where(abs(X) < 0.5, 120 - 60 * abs(X), AIR) + np.where(abs(X) < 0.2, 90, 0),
    "hand": fingers(),
    "skull": np.where(X * X + Y * Y < 0.8, 150 + 60 * (X * X + Y * Y), AIR),
    "lateral chest": np.where(abs(X) < 0.8, 140 + 80 * X - 60 * np.exp(-((X + 0.1) ** 2) / 0.05), AIR),
    "abdomen": np.where(abs(X) < 0.9, 150 + 60 * np.exp(-X * X / 0.02) - 20 * abs(X), AIR),
    "noise": np.random.default_rng(0).integers(0, 256, X.shape).astype(float),
    "blank": np.zeros(X.shape),
    "a single pixel row": np.zeros((1, 300)),
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_other_shapes_are_turned_away(name: str) -> None:
    assert not looks_frontal(OTHERS[name].clip(0, 255).astype(np.uint8))


def test_phantoms_pass_whatever_is_drawn_into_them() -> None:
    assert all(looks_frontal(generate_phantom(5, index).image) for index in range(12))


def test_a_real_frontal_radiograph_passes_and_neither_half_of_it_nor_lying_on_its_side() -> None:
    picture = PydicomDecoder(64_000_000, 2**26, 1).decode(io.BytesIO(RADIOGRAPH.read_bytes()))
    assert looks_frontal(picture)
    framed = np.zeros((1400, 1300), np.uint8)
    framed[200:1224, 100:1124] = picture
    assert looks_frontal(framed), "a collimator's black frame changes nothing"
    assert not looks_frontal(np.ascontiguousarray(picture[:, :512]))
    assert not looks_frontal(np.ascontiguousarray(np.rot90(picture)))
