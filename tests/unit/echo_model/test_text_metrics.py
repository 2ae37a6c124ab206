"""ROUGE-L and CIDEr on examples worked out by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from echo_model.evaluation.text_metrics import cider, rouge_l, text_scores, words


def test_words_are_lower_case_without_punctuation() -> None:
    assert words("No  Pleural-effusion.\nT12_a!") == ["no", "pleural", "effusion", "t12", "a"]


@pytest.mark.parametrize(
    ("candidate", "reference", "common"),
    [
        ("police kill the gunman", "police killed the gunman", 3),
        ("the gunman kill police", "police killed the gunman", 2),  # same words but one, order counts
        ("a b c d e f", "a x c y e", 3),
        ("a", "b a a", 1),
        ("a a a", "a", 1),
    ],
)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(
    candidate: str, reference: str, common: int
) -> None:
    precision, recall = Fraction(common, len(candidate.split())), Fraction(common, len(reference.split()))
    weight = Fraction(144, 100)
    expected = (1 + weight) * precision * recall / (recall + weight * precision)
    assert rouge_l(candidate, reference) == pytest.approx(float(expected), abs=1e-12)


def test_rouge_l_weighs_recall_more_than_precision() -> None:
    # P = 1/2, R = 1: 2.44 * 0.5 / 1.72 = 61/86; the other way round 2.44 * 0.5 / 1.94 = 61/97.
    assert rouge_l("a b", "a") == pytest.approx(61 / 86)
    assert rouge_l("a", "a b") == pytest.approx(61 / 97)


def test_rouge_l_at_its_ends() -> None:
    assert rouge_l("Clear lungs. No effusion.", "clear lungs no effusion") == 1.0
    assert rouge_l("clear lungs", "big heart") == 0.0
    assert rouge_l("", "clear") == rouge_l("clear", "...") == rouge_l("", "") == 0.0


def test_cider_by_hand() -> None:
    references = ["a b", "a c"]  # "a" is in both: weight log(2/2) = 0; "b", "c", "a b", "a c": log 2
    # First text: cosine 1 for words and for pairs, none longer: 10 * (1 + 1 + 0 + 0) / 4 = 5.
    # Second: (b 3, c 4) against (c 1): cosine 4/5; no pair in common: 10 * (4/5) / 4 = 2.
    assert cider(["a b", "b b b c c c c"], references) == pytest.approx((5 + 2) / 2)
    # A word that no reference has weighs log(2/1): (b 1, z 1) against (b 1) is 1/sqrt 2. Nothing in common is 0.
    assert cider(["b z", "z"], references) == pytest.approx(10 / math.sqrt(2) / 4 / 2)


def test_cider_weighs_rare_words_more() -> None:
    # 4 references; "a" in two: log 2, "b" in one: log 4 = 2 log 2, so that the first is (a 1, b 2).
    # Said "a": cosine 1/sqrt 5; said "b": 2/sqrt 5.
    references = ["a b", "a", "c", "d"]
    assert cider(["a", "x", "x", "x"], references) == pytest.approx(10 / math.sqrt(5) / 4 / 4)
    assert cider(["b", "x", "x", "x"], references) == pytest.approx(20 / math.sqrt(5) / 4 / 4)


def test_cider_of_the_references_themselves_is_ten() -> None:
    references = ["no pleural effusion is seen", "the heart is much enlarged"]
    assert cider(references, references) == pytest.approx(10.0)
    assert cider(references[::-1], references) == pytest.approx(0.0)  # "is" is in both and weighs nothing


def test_cider_depends_on_order() -> None:
    references = ["a b c d", "e f g h"]
    # All words right but turned round: only the single words agree.
    assert cider(["d c b a", "e f g h"], references) == pytest.approx((10 / 4 + 10) / 2)


def test_a_single_reference_has_no_rare_words() -> None:
    assert cider(["a b c d"], ["a b c d"]) == 0.0


@pytest.mark.parametrize(("texts", "references"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_unequal_numbers_are_refused(texts: list[str], references: list[str]) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        cider(texts, references)
    with pytest.raises(ValueError, match="cannot be compared"):
        text_scores(texts, references)


def test_text_scores_are_means_over_the_texts() -> None:
    assert text_scores(["a b", "x"], ["a b", "a c"]) == {"rouge_l": 0.5, "cider": 2.5}
