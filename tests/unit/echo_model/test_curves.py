"""Curves of a training as a picture."""

import json
from pathlib import Path

import pytest
from PIL import Image

from echo_model.training.curves import draw_curves, read_curve


def test_the_later_line_of_a_step_counts(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "samples": 8, "loss": 3.0},
        {"step": 2, "samples": 16, "loss": 2.0},
        {"step": 2, "samples": 16, "loss": 1.5},
        {"step": 2, "samples": 16, "check": {"macro_f1": 0.5}},
    ]
    file = tmp_path / "ar.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    losses, checks = read_curve(file)
    assert [entry["loss"] for entry in losses] == [3.0, 1.5]
    assert [entry["check"]["macro_f1"] for entry in checks] == [0.5]


def test_every_stage_gets_a_row(tmp_path: Path) -> None:
    for stage in ("ar", "rad"):
        entry = {"step": 1, "samples": 8, "loss": 3.0}
        (tmp_path / f"{stage}.jsonl").write_text(json.dumps(entry) + "\n")
    draw_curves(tmp_path, ("tower", "ar"), tmp_path / "one.png")
    draw_curves(tmp_path, ("ar", "rad", "dcd"), tmp_path / "two.png")
    sizes = []
    for name in ("one.png", "two.png"):
        with Image.open(tmp_path / name) as picture:
            sizes.append(picture.size)
    one, two = sizes
    assert one[0] == two[0]
    assert two[1] == pytest.approx(2 * one[1], abs=2)


def test_no_curve_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no curve"):
        draw_curves(tmp_path, ("ar",), tmp_path / "x.png")
