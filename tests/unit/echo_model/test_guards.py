from __future__ import annotations

import pytest

from echo_model.guards import confidence_of, garble_flags, token_spans
from unit.echo_model.tiny_checkpoint import IM_END, tiny_tokenizer


@pytest.mark.parametrize(
    ("sentence", "flags"),
    [
        ("There is subcutcutaneous emphysema.", ("repeated_subword",)),
        ("There is a righturaluralusion.", ("repeated_subword",)),
        ("There is a right right effusion.", ("repeated_word",)),
        ("No No pneumothorax.", ("repeated_word",)),
        ("The mediastinum is midline..", ("repeated_punctuation",)),
        ("双肺清晰，，心影不大。", ("repeated_punctuation",)),
        ("The heart is the heart is large.", ("loop",)),
        ("No focal mass, no focal mass, is seen.", ("loop",)),
        ("Seen in the left lung and in the left base or in the left apex.", ("loop",)),
        ("frontal frontal radiograph radiograph", ("repeated_word",)),
    ],
)
def test_doubled_pieces_are_flagged(sentence: str, flags: tuple[str, ...]) -> None:
    assert garble_flags(sentence) == flags


@pytest.mark.parametrize(
    "sentence",
    [
        "The cardiomediastinal silhouette is normal in size and contour.",
        "There is a small left pleural effusion with adjacent atelectasis in the left lower lobe.",
        "An endotracheal tube ends 3.5 cm above the carina.",
        "No pneumothorax and no pleural effusion on the right or on the left.",
        "A systolic murmur was reported.",
        "The lines that that tube crosses are unchanged.",
        "Right-sided pacemaker with leads in the right atrium and right ventricle.",
        "双肺清晰，心影不大，双侧肋膈角锐利。",
        "",
    ],
)
def test_proper_sentences_are_not(sentence: str) -> None:
    assert garble_flags(sentence) == ()


def test_tokens_know_their_place_in_the_text() -> None:
    tokenizer = tiny_tokenizer()
    text = "Ab. 肺c"
    ids = [*tokenizer.encode(text).ids, IM_END]
    spans = token_spans(tokenizer, ids)
    assert len(spans) == len(ids)
    assert spans[0] == (0, 1)
    assert text[slice(*spans[2])] == "."
    assert spans[-1] == (len(text), len(text)), "a special token takes no room"
    assert {spans[at][1] for at in (4, 5, 6)} == {5}, "the bytes of one character end together"
    assert spans[-2] == (5, 6)


def test_confidence_is_that_of_the_tokens_touched() -> None:
    spans = [(0, 2), (2, 5), (5, 9), (9, 9)]
    values = [0.2, 0.4, 0.9, 0.0]
    assert confidence_of((0, 5), spans, values) == pytest.approx((0.3, 0.2))
    assert confidence_of((4, 9), spans, values) == pytest.approx((0.65, 0.4))
    assert confidence_of((9, 12), spans, values) == (0.0, 0.0)
