"""ROUGE-L, CIDEr, BLEU-4 and METEOR on examples worked out by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from echo_model.evaluation.ngram_metrics import bleu4, meteor, stem, text_scores
from echo_model.evaluation.text_metrics import cider, rouge_l, words


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
    # METEOR of "a b" against itself: one run of two words, 1 - 0.5 * (1/2)^3 = 0.9375; the other has none.
    scores = text_scores(["a b", "x"], ["a b", "a c"])
    assert scores == {"rouge_l": 0.5, "cider": 2.5, "bleu4": 0.0, "meteor": round(0.9375 / 2, 4)}


def test_bleu_by_hand() -> None:
    # Clipped counts: 5 of 6 words (the second "the" is in the reference twice), 3 of 5 pairs, 2 of 4 triples, 1 of 3
    # runs of four; as long as the reference.
    said, reference = "the cat sat on the mat", "the cat sat on a mat"
    #   words: the(1 of 2) cat sat on mat -> 5/6; pairs: the-cat cat-sat sat-on -> 3/5; triples: 2/4; fours: 1/3
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu4([said], [reference]) == pytest.approx(expected)


def test_bleu_counts_over_the_corpus_and_punishes_brevity() -> None:
    references = ["a b c d e f g h", "p q r s"]
    # All 4 + 4 words are right: precisions are 1; 8 words against 12: exp(1 - 12/8).
    assert bleu4(["a b c d", "p q r s"], references) == pytest.approx(math.exp(1 - 12 / 8))
    assert bleu4(references, references) == pytest.approx(1.0)
    # Longer texts are not rewarded: 12 of 13 words, 10 - 0 pairs ...
    assert bleu4(["a b c d e f g h x", "p q r s"], references) < 1.0


def test_bleu_clips_repeated_words() -> None:
    # "the" seven times against two in the reference: the unigram precision is 2/7 (the example of the paper); no pair.
    assert bleu4(["the the the the the the the"], ["the cat is on the mat"]) == 0.0
    # a a a a a against "a a a a": 4/5 words, 3/4 pairs, 2/3 triples, 1/2 fours.
    assert bleu4(["a a a a a"], ["a a a a"]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


@pytest.mark.parametrize(
    ("candidate", "reference", "matches", "said", "wanted", "runs"),
    [
        ("the cat sat", "the cat sat", 3, 3, 3, 1),
        ("on the mat sat the cat", "the cat sat on the mat", 6, 6, 6, 3),  # on the mat | sat | the cat
        ("effusion left", "left effusion", 2, 2, 2, 2),
        ("effusions seen", "effusion is seen", 2, 2, 3, 2),  # stems agree; "is" between them breaks the run
        ("a x b", "a b", 2, 3, 2, 2),
        ("a", "b a a", 1, 1, 3, 1),
    ],
)
def test_meteor_by_hand(candidate: str, reference: str, matches: int, said: int, wanted: int, runs: int) -> None:
    precision, recall = Fraction(matches, said), Fraction(matches, wanted)
    expected = 10 * precision * recall / (recall + 9 * precision) * (1 - Fraction(1, 2) * Fraction(runs, matches) ** 3)
    assert meteor(candidate, reference) == pytest.approx(float(expected))


def test_meteor_at_its_ends() -> None:
    assert meteor("", "a") == meteor("a", "") == meteor("a", "b") == 0.0


@pytest.mark.parametrize(
    ("word", "root"),
    [("effusions", "effus"), ("effusion", "effus"), ("enlarged", "enlarg"), ("enlargement", "enlarge"), ("is", "is"),
     ("ribs", "rib"), ("opacities", "opacit"), ("opacity", "opacit"), ("gas", "gas")],
)  # fmt: skip
def test_stem(word: str, root: str) -> None:
    assert stem(word) == root


@pytest.mark.parametrize(("texts", "references"), [([], []), (["a"], ["a", "b"])])
def test_bleu_refuses_unequal_numbers(texts: list[str], references: list[str]) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        bleu4(texts, references)
