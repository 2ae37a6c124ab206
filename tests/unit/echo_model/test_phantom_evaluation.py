"""Scores on examples worked out by hand."""

import numpy as np
import pytest

from echo_model.data.labels import FINDINGS, Finding
from echo_model.data.phantoms import generate_phantom
from echo_model.evaluation import evaluate_phantoms, score_reports

NOTHING = {name: Finding(present=False) for name in FINDINGS}
LEFT_EFFUSION = NOTHING | {"pleural_effusion": Finding(True, "left", size="small")}
BIG_HEART = NOTHING | {"cardiomegaly": Finding(present=True)}


def test_perfect_reports() -> None:
    scores = score_reports([LEFT_EFFUSION, BIG_HEART], ["Small left pleural effusion.", "Cardiomegaly."])
    assert scores["macro_f1"] == pytest.approx(2 / 11, abs=1e-4)
    assert scores["micro_f1"] == 1.0
    assert scores["laterality_accuracy"] == 1.0
    assert scores["exact"] == 1.0
    assert scores["per_finding"]["pleural_effusion"] == {
        "tp": 1, "fp": 0, "fn": 0, "precision": 1.0, "recall": 1.0, "f1": 1.0,
    }  # fmt: skip


def test_wrong_side_is_found_but_not_right() -> None:
    scores = score_reports([LEFT_EFFUSION], ["Right pleural effusion."])
    assert scores["micro_f1"] == 1.0
    assert scores["laterality_accuracy"] == 0.0
    assert scores["exact"] == 0.0


def test_missed_invented_and_hedged() -> None:
    texts = ["No effusion.", "Cardiomegaly. Right pneumothorax.", "Possible nodule."]
    scores = score_reports([LEFT_EFFUSION, BIG_HEART, NOTHING], texts)
    assert scores["per_finding"]["pleural_effusion"]["fn"] == 1
    assert scores["per_finding"]["pneumothorax"]["fp"] == 1
    assert scores["per_finding"]["nodule"] == {"tp": 0, "fp": 0, "fn": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert scores["micro_f1"] == pytest.approx(2 / 4)
    assert scores["exact"] == pytest.approx(1 / 3, abs=1e-4)


def test_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        score_reports([NOTHING], [])
    with pytest.raises(ValueError, match="cannot be compared"):
        score_reports([], [])


def test_an_oracle_scores_one_and_the_controls_do_not() -> None:
    known = {generate_phantom(77, i).image.tobytes(): generate_phantom(77, i).report for i in range(40)}
    asked: list[int] = []

    def oracle(images: list[np.ndarray]) -> list[str]:
        asked.append(len(images))
        return [known.get(image.tobytes(), "No abnormality.") for image in images]

    result = evaluate_phantoms(oracle, 40, 77, batch=16)
    assert asked == [16, 16, 8, 1]
    assert result["micro_f1"] == result["laterality_accuracy"] == result["exact"] == 1.0
    assert result["controls"]["blank_image"]["macro_f1"] == 0.0
    assert result["controls"]["next_image"]["macro_f1"] < 0.5
    assert result["blank_image_text"] == "No abnormality."
