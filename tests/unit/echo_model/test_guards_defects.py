"""Defects with their places, on the text alone and with a lexicon of good reports."""

from __future__ import annotations

import pytest

from echo_model.guards import GARBLED, Defect, Lexicon, contradictions, defects, flags_within

GOOD = (
    "Findings: The thorax is symmetric. There is a small left pleural effusion. No pneumothorax. "
    "A left-sided line ends 3.5 cm below the carina. Impression: Left pleural effusion."
)


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    other = "Findings: Symmetric thorax. The hila are normal. No line. Impression: No pneumothorax."
    return Lexicon.fit([GOOD, other] * 10)


def marked(text: str, lexicon: Lexicon | None = None) -> list[tuple[str, str]]:
    return [(one.kind, text[one.start : one.end]) for one in defects(text, lexicon)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("There is subcutcutaneous air.", [("repeated_subword", "cutcut")]),
        ("A right right effusion.", [("repeated_word", "right right")]),
        ("The hila are normal.. No line.", [("repeated_punctuation", "..")]),
        ("No line. No tube. No tube. No tube.", [("loop", "No tube. No tube. No tube.")]),
        ("No line. The heart is large. No line.", [("loop", "No line.")]),
        ("In the left lung and in the left base or in the left apex.", [("loop", "in the left")]),
    ],
)
def test_the_text_alone(text: str, found: list[tuple[str, str]]) -> None:
    kinds = marked(text)
    assert set(found) <= set(kinds)
    assert {kind for kind, _ in kinds} == {kind for kind, _ in found} <= GARBLED


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (GOOD.replace("pleural effusion. No", "effusion pleural. No"), "left effusion pleural."),
        (GOOD.replace("is a", "a is"), "There a is small"),
        (GOOD.replace("symmetric. There", "symmetric There."), "symmetric There. is"),
        (GOOD.replace("thorax is", "thoraxis"), "thoraxis"),
        (GOOD.replace("small", "banana"), "banana"),
    ],
)
def test_words_and_their_order(text: str, found: str, lexicon: Lexicon) -> None:
    assert [piece for _, piece in marked(text, lexicon)] == [found]
    assert marked(text) == []


def test_good_texts_pass(lexicon: Lexicon) -> None:
    assert defects(GOOD, lexicon) == []
    assert defects(GOOD.replace("3.5", "27"), lexicon) == [], "numbers are all alike"
    assert defects("", lexicon) == []
    chinese = "影像所见：双肺清晰，心影不大，渐渐增大。诊断意见：心影不大。"
    assert defects(chinese, Lexicon.fit([chinese])) == []


def test_the_same_sentence_may_stand_in_both_sections() -> None:
    assert defects("Findings: No pneumothorax. Impression: No pneumothorax.") == []
    assert [one.kind for one in defects("Impression: No effusion. No pneumothorax. No effusion.")] == ["loop"]


def test_a_growing_text_is_judged_only_as_far_as_it_is_whole(lexicon: Lexicon) -> None:
    seen = 0
    for end in range(1, len(GOOD)):
        assert defects(GOOD[:end], lexicon, finished=False) == []
        assert defects(GOOD[:end], lexicon, finished=False, since=seen) == []
        seen = max(0, end - 20)
    assert [one.kind for one in defects("Findings: The thor", lexicon)] == ["unknown_word"]


def test_since_leaves_out_what_was_told_before(lexicon: Lexicon) -> None:
    text = GOOD.replace("small", "banana") + " A hammer."
    banana, hammer = [one for one in defects(text, lexicon) if one.kind == "unknown_word"]
    later = defects(text, lexicon, since=banana.end)
    assert hammer in later
    assert banana not in later
    assert banana in defects(text, lexicon, since=banana.end - 1)


def test_doubled_pieces_can_be_left_out(lexicon: Lexicon) -> None:
    assert defects("The hila are are normal.", lexicon, garble=False) == []
    assert defects("The hila are are normal.", lexicon) != []


def test_defects_are_given_to_the_sentences_that_they_touch() -> None:
    found = [Defect("loop", 5, 12), Defect("unknown_word", 14, 16), Defect("loop", 15, 18)]
    assert flags_within(found, (0, 5)) == ()
    assert flags_within(found, (0, 6)) == ("loop",)
    assert flags_within(found, (11, 20)) == ("loop", "unknown_word")


@pytest.mark.parametrize(
    ("findings", "impression", "names"),
    [
        ("There is a left pneumothorax.", "Right pneumothorax.", ("pneumothorax",)),
        ("There is a left pneumothorax.", "Left pneumothorax.", ()),
        ("No pneumothorax.", "Left pneumothorax.", ("pneumothorax",)),
        ("The heart is enlarged.", "No cardiomegaly.", ("cardiomegaly",)),
        ("There are small bilateral pleural effusions.", "Left pleural effusion.", ("pleural_effusion",)),
        ("No pneumothorax.", "Possible left pneumothorax.", ()),
        ("There is a left pneumothorax.", "Pneumothorax.", ()),
        ("There is a left pneumothorax.", "No effusion.", ()),
        ("There is a left pneumothorax.", "", ()),
    ],
)
def test_sections_that_disagree(findings: str, impression: str, names: tuple[str, ...]) -> None:
    assert contradictions(findings, impression) == names
