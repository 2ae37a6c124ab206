from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models

from echo_model.errors import PromptError
from echo_model.prompt import INSTRUCTIONS, build_prompt, parse_sections, sentence_spans, split_sentences
from unit.echo_model.tiny_checkpoint import IMAGE_PAD, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def test_the_prompt_reads_as_one_user_turn_and_the_opening_of_the_answer() -> None:
    ids = build_prompt(TOKENIZER, [2, 3], instruction="Look.")
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
        "<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>Look.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(IMAGE_PAD) == 5
    assert ids == TOKENIZER.encode(TOKENIZER.decode(ids, skip_special_tokens=False)).ids


def test_both_languages_ask_for_both_sections() -> None:
    english = TOKENIZER.decode(build_prompt(TOKENIZER, [1]))
    assert INSTRUCTIONS["en"] in english
    assert "Findings: {}, Impression: {}" in english
    assert "诊断意见：{}" in TOKENIZER.decode(build_prompt(TOKENIZER, [1], language="zh"))


def test_prompts_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(PromptError, match="special token"):
        build_prompt(TOKENIZER, [1], instruction="Look <|image_pad|> here")
    with pytest.raises(PromptError, match="at least one token"):
        build_prompt(TOKENIZER, [0])
    with pytest.raises(PromptError, match="im_start"):
        build_prompt(Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")), [1])


@pytest.mark.parametrize(
    ("text", "findings", "impression", "errors"),
    [
        ("Findings: Lungs clear., Impression: Normal.", "Lungs clear.", "Normal.", ()),
        ("FINDINGS:\nLungs clear.\n\nIMPRESSION:\nNormal.", "Lungs clear.", "Normal.", ()),
        ("Impression: Normal. Findings: Lungs clear.", "Lungs clear.", "Normal.", ()),
        ("Findings: Heart large. Conclusion: Failure.", "Heart large.", "Failure.", ()),
        ("影像所见：双肺清晰。，诊断意见：未见异常。", "双肺清晰。", "未见异常。", ()),
        ("检查所见:心影增大。印象:心脏增大。", "心影增大。", "心脏增大。", ()),
        ("Findings: Lungs clear.", "Lungs clear.", "", ("missing_impression",)),
        ("Impression: Normal.", "", "Normal.", ("missing_findings",)),
        ("The lungs are clear. Impression: Normal.", "The lungs are clear.", "Normal.", ("missing_findings",)),
        ("no headings at all", "no headings at all", "", ("missing_findings", "missing_impression")),
        ("", "", "", ("missing_findings", "missing_impression")),
        ("Findings: , Impression: ", "", "", ("empty_findings", "empty_impression")),
        ("Findings: a. Findings: b. Impression: c.", "a.", "c.", ("repeated_findings",)),
    ],
)
def test_sections(text: str, findings: str, impression: str, errors: tuple[str, ...]) -> None:
    got = parse_sections(text)
    assert (got.findings, got.impression, got.errors) == (findings, impression, errors)
    assert text[slice(*got.findings_span)] == findings
    assert text[slice(*got.impression_span)] == impression


def test_a_word_in_running_text_is_no_heading() -> None:
    text = "Findings: The prefindings: are odd and the impression of the heart is large., Impression: None."
    assert parse_sections(text).findings == "The prefindings: are odd and the impression of the heart is large."


def test_sentences_keep_numbers_whole_and_know_where_they_are() -> None:
    text = "A nodule of 1.5 cm is seen! No effusion.  Is it?双肺清晰。心影不大。 tail"
    assert split_sentences(text) == [
        "A nodule of 1.5 cm is seen!",
        "No effusion.",
        "Is it?双肺清晰。",
        "心影不大。",
        "tail",
    ]
    assert [text[slice(*span)] for span in sentence_spans(text)] == split_sentences(text)
    assert sentence_spans(text, 28, 40) == [(28, 40)]
    assert split_sentences("  ") == []
