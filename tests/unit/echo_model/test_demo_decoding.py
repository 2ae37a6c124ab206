"""The bundled demo model through the engine: both forms of decoding, drawn findings, pictures that are no phantoms."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from echo_model import GenerationSettings, ReportEngine, demo_checkpoint_path
from echo_model.data.labels import FINDINGS, Finding
from echo_model.data.phantoms import generate_phantom
from echo_model.evaluation.rails import measure_rails, table
from echo_model.guard_settings import DEFAULT_GATE, GuardSettings
from echo_model.guards import GARBLED

SEED = 77_001  # a series that no training, threshold or model card uses
NOTHING = {name: Finding(False) for name in FINDINGS}


@pytest.fixture(scope="module")
def engine() -> Iterator[ReportEngine]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield ReportEngine.from_pretrained("demo")
    torch.set_num_threads(before)


def test_what_is_drawn_is_reported_with_its_side(engine: ReportEngine) -> None:
    drawn = [
        ("pleural_effusion", Finding(True, "left", size="large")),
        ("pleural_effusion", Finding(True, "right", size="large")),
        ("pneumothorax", Finding(True, "left")),
        ("pacemaker", Finding(True, "right")),
        ("endotracheal_tube", Finding(True)),
    ]
    right = 0
    for index, (name, finding) in enumerate(drawn):
        image = generate_phantom(SEED, index, NOTHING | {name: finding}).image
        mention = engine.generate(image).structured_findings.get(name)
        right += mention is not None and mention.state == "present" and mention.side == finding.side
    assert right >= 4


def test_fused_and_separate_passes_write_the_same_text(engine: ReportEngine) -> None:
    for index in range(3):
        image = generate_phantom(SEED, index).image
        for steps in (1, 8):
            off = GuardSettings.off()
            fused = engine.generate(image, GenerationSettings(denoising_steps=steps, guards=off))
            apart = engine.generate(image, GenerationSettings(denoising_steps=steps, guards=off, fused=False))
            assert fused.token_ids == apart.token_ids
            assert apart.stats.forward_passes == fused.stats.forward_passes + fused.stats.blocks - 1


def test_decoded_together_or_alone_the_texts_are_the_same(engine: ReportEngine) -> None:
    """float32: what a batch adds to the rounding changes no token."""
    films = [generate_phantom(SEED, index).image for index in range(6)]
    for settings in (GenerationSettings(), GenerationSettings(denoising_steps=8)):
        alone = [engine.generate(film, settings).token_ids for film in films]
        together = [future.result(120).token_ids for future in [engine.submit(film, settings) for film in films]]
        assert together == alone


@pytest.fixture(scope="module")
def undistilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with every weight of its layers off by a fourth or so: what it says in one step breaks."""
    folder = tmp_path_factory.mktemp("undistilled") / "demo"
    shutil.copytree(demo_checkpoint_path(), folder)
    weights, noise = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(1)
    for name, value in weights.items():
        if "layers" in name and "visual" not in name and value.ndim == 2:
            weights[name] = (value * (1 + 0.28 * torch.randn(value.shape, generator=noise))).to(value.dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_second_attempts_mend_what_forced_one_step_decoding_breaks(undistilled: Path) -> None:
    result = measure_rails(undistilled, 8, SEED, gate=DEFAULT_GATE)
    forced, mended = result["one_step"]["off"], result["one_step"]["gate and redenoise"]
    assert forced["garbled_sentences"] >= 10
    assert result["one_step"]["gate"]["garbled_sentences"] <= 0.5 * forced["garbled_sentences"]
    assert mended["garbled_sentences"] <= 0.5 * forced["garbled_sentences"]
    assert mended["agrees"] >= forced["agrees"]
    assert mended["redenoised_fraction"] + mended["gated_fraction"] > 0
    assert mended["more_forward_passes"] == pytest.approx(
        mended["forward_passes"] / forced["forward_passes"] - 1, abs=1e-3
    )
    assert "garbled" in table(result)


def test_the_guards_leave_its_usual_reports_alone_and_see_broken_text(engine: ReportEngine) -> None:
    unmended = GuardSettings(gate=None, redenoise=False)
    usual, broken = (
        [
            not GARBLED.isdisjoint(sentence.flags)
            for index in range(4)
            for sentence in engine.generate(generate_phantom(SEED, index).image, settings).sentences
        ]
        for settings in (GenerationSettings(), GenerationSettings(block_length=16, guards=unmended))
    )
    assert sum(usual) <= 0.05 * len(usual)
    assert sum(broken) >= 0.1 * len(broken), "it was distilled for eight tokens a step, not for sixteen"


def test_pictures_that_are_no_phantoms_are_flagged(engine: ReportEngine) -> None:
    film = generate_phantom(SEED, 0).image
    slope = np.add.outer(np.linspace(20, 120, 400), np.linspace(0, 100, 300))
    strange = {
        "noise": np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8),
        "smooth slope": slope.astype(np.uint8),
        "negative": 255 - film,
        "overexposed": np.clip(film.astype(int) + 90, 0, 255).astype(np.uint8),
        "wide, so with bars": film[60:160],
    }
    short = GenerationSettings(gen_length=8)
    for name, image in strange.items():
        assert "out_of_domain" in engine.generate(image, short).flags, name
    inside = [engine.generate(generate_phantom(SEED, index).image, short).flags for index in range(20, 35)]
    assert sum("out_of_domain" in flags for flags in inside) <= 1
