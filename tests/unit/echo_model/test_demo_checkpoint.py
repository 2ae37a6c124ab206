"""The demonstration model that is shipped: small, documented, and its text comes from the image."""

import json

import numpy as np
import pytest

from echo_model import ReportEngine, demo_checkpoint_path
from echo_model.data.labels import FINDINGS
from echo_model.data.phantoms import NATIVE_SIZE, generate_phantom
from echo_model.evaluation import score_reports
from echo_model.evaluation.phantoms import HELD_OUT_SEED
from echo_model.prompt import build_prompt, parse_sections
from echo_model.training.checkpoint import generation_settings
from echo_model.training.demo_plan import Plan
from echo_model.training.shape import VISUAL_TOKENS

FOLDER = demo_checkpoint_path()
SAMPLE = 8


@pytest.fixture(scope="module")
def engine() -> ReportEngine:
    return ReportEngine.from_pretrained("demo")


@pytest.fixture(scope="module")
def reports(engine: ReportEngine) -> list[str]:
    return [engine.generate(generate_phantom(HELD_OUT_SEED, 500 + index).image).text for index in range(SAMPLE)]


def test_files_and_size() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert {
        "MODEL_CARD.md",
        "config.json",
        "curves.png",
        "domain.safetensors",
        "evaluation.json",
        "generation_config.json",
        "lexicon.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    } == names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 40e6


def test_the_card_warns_and_tells_the_measured_figures() -> None:
    card = (FOLDER / "MODEL_CARD.md").read_text("utf-8")
    result = json.loads((FOLDER / "evaluation.json").read_text("utf-8"))["phantoms"]
    assert "never seen a patient" in card
    assert "must not be used" in card
    assert f"{result['macro_f1']:.3f}" in card
    assert all(name.replace("_", " ") in card for name in FINDINGS)


def test_the_recorded_evaluation_meets_the_mark() -> None:
    result = json.loads((FOLDER / "evaluation.json").read_text("utf-8"))["phantoms"]
    assert result["count"] >= 1_000
    assert result["seed"] == HELD_OUT_SEED != Plan().train_seed
    assert result["macro_f1"] >= 0.92
    assert result["laterality_accuracy"] >= 0.97
    assert result["controls"]["blank_image"]["macro_f1"] < 0.25 * result["macro_f1"]
    assert result["controls"]["next_image"]["macro_f1"] < 0.5 * result["macro_f1"]


def test_the_shipped_settings_are_those_of_the_training_code(engine: ReportEngine) -> None:
    shipped = json.loads((FOLDER / "generation_config.json").read_text("utf-8"))
    assert shipped == generation_settings(engine.loaded.tokenizer, denoising_steps=1)


def test_the_prompt_ends_on_the_block_grid(engine: ReportEngine) -> None:
    settings = engine.loaded.generation_config
    prompt = build_prompt(engine.loaded.tokenizer, [VISUAL_TOKENS], instruction=settings["instruction"])
    assert len(prompt) % settings["block_length"] == 0


def test_reports_tell_what_the_phantoms_show(reports: list[str]) -> None:
    truths = [generate_phantom(HELD_OUT_SEED, 500 + index).findings for index in range(SAMPLE)]
    assert score_reports(truths, reports)["micro_f1"] >= 0.7
    assert score_reports(truths[1:] + truths[:1], reports)["micro_f1"] < 0.6


def test_reports_have_both_sections(reports: list[str]) -> None:
    for text in reports:
        sections = parse_sections(text)
        assert not sections.errors
        assert sections.findings
        assert sections.impression


def test_a_blank_image_gives_no_finding_and_is_out_of_domain(engine: ReportEngine) -> None:
    report = engine.generate(np.zeros((NATIVE_SIZE, NATIVE_SIZE), dtype=np.uint8))
    assert not [name for name, mention in report.structured_findings.items() if mention.state == "present"]
    assert "out_of_domain" in report.flags


def test_a_phantom_is_in_domain(engine: ReportEngine) -> None:
    report = engine.generate(generate_phantom(HELD_OUT_SEED, 900).image)
    assert "out_of_domain" not in report.flags
