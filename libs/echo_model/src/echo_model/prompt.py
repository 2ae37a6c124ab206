"""The question put to the model, and the sections of its answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tokenizers import Tokenizer

from echo_model.errors import PromptError

Language = Literal["en", "zh"]
SectionName = Literal["findings", "impression"]
Span = tuple[int, int]

INSTRUCTIONS: dict[Language, str] = {
    "en": (
        "Read this chest radiograph. Describe every anatomical region in order, then sum up. "
        'Answer in exactly this form: "Findings: {}, Impression: {}".'
    ),
    "zh": "请阅读这张胸部X光片，按解剖部位依次描述，然后总结。请严格按以下格式回答：“影像所见：{}，诊断意见：{}”。",
}

_HEADING = re.compile(
    r"(?:(?<=^)|(?<=[\s.,;:!?。，；！？\"“]))"
    r"(?:(?P<findings>findings?|(?:影像|检查)?所见|影像表现|影像描述)"
    r"|(?P<impression>impressions?|conclusion|诊断意见|(?:影像|诊断)?印象|(?:影像)?诊断|结论|意见))\s*[:：]",
    re.IGNORECASE,
)
# A sentence ends at . ! ? before white space or the end (so "1.5 cm" holds together), or at a Chinese full stop.
_SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)|[。！？；]+[”’）]*")


@dataclass(frozen=True)
class Sections:
    """A report taken apart.

    `findings` and `impression` are empty when absent; the spans are character offsets into the whole text;
    `errors` holds `missing_findings`, `missing_impression`, `empty_findings`, `empty_impression`,
    `repeated_findings`, `repeated_impression`.
    """

    findings: str
    impression: str
    errors: tuple[str, ...] = ()
    findings_span: Span = (0, 0)
    impression_span: Span = (0, 0)


def build_prompt(
    tokenizer: Tokenizer, n_image_tokens: list[int], *, instruction: str | None = None, language: Language = "en"
) -> list[int]:
    """Token ids of one user turn with `len(n_image_tokens)` images, up to and with the assistant's opening.

    `instruction` replaces the built-in sentence of `language`. Special tokens are looked up one by one, so a text that
    spells one out cannot smuggle it in. Raises PromptError naming what the tokenizer lacks.
    """
    if any(count < 1 for count in n_image_tokens):
        raise PromptError("an image needs at least one token")
    words = INSTRUCTIONS[language] if instruction is None else instruction
    ids = [_special(tokenizer, "<|im_start|>"), *_plain(tokenizer, "user\n")]
    for count in n_image_tokens:
        ids.append(_special(tokenizer, "<|vision_start|>"))
        ids.extend([_special(tokenizer, "<|image_pad|>")] * count)
        ids.append(_special(tokenizer, "<|vision_end|>"))
    ids += [*_plain(tokenizer, words), _special(tokenizer, "<|im_end|>"), *_plain(tokenizer, "\n")]
    return [*ids, _special(tokenizer, "<|im_start|>"), *_plain(tokenizer, "assistant\n")]


def parse_sections(text: str) -> Sections:
    """Take a report apart at its headings (English or Chinese). Never raises: what is missing becomes a code.

    Text before the first heading, or a text without any, is kept as findings so that nothing is lost.
    """
    spans: dict[str, Span] = {}
    errors: list[str] = []
    headings = list(_HEADING.finditer(text))
    for index, match in enumerate(headings):
        name = match.lastgroup or ""
        end = headings[index + 1].start() if index + 1 < len(headings) else len(text)
        if name not in spans:
            spans[name] = _trim(text, match.end(), end)
        else:
            errors.append(f"repeated_{name}")
    for name in ("findings", "impression"):
        if name not in spans:
            errors.append(f"missing_{name}")
        elif spans[name][0] == spans[name][1]:
            errors.append(f"empty_{name}")
    if "findings" not in spans:
        spans["findings"] = _trim(text, 0, headings[0].start() if headings else len(text))
    found, summed = spans["findings"], spans.get("impression", (0, 0))
    return Sections(text[slice(*found)], text[slice(*summed)], tuple(dict.fromkeys(errors)), found, summed)


def sentence_spans(text: str, start: int = 0, end: int | None = None) -> list[Span]:
    """Character spans of the sentences within `text[start:end]`, without surrounding white space."""
    stop = len(text) if end is None else end
    spans: list[Span] = []
    position = start
    for match in _SENTENCE_END.finditer(text, start, stop):
        spans.append(_strip(text, position, match.end()))
        position = match.end()
    spans.append(_strip(text, position, stop))
    return [span for span in spans if span[0] < span[1]]


def split_sentences(text: str) -> list[str]:
    """The sentences of `text`, in order."""
    return [text[slice(*span)] for span in sentence_spans(text)]


def _strip(text: str, start: int, end: int) -> Span:
    """Shrink a span past the white space at its ends."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _trim(text: str, start: int, end: int) -> Span:
    """Like `_strip`, and past the comma that joins two sections."""
    start, end = _strip(text, start, end)
    while end > start and text[end - 1] in ",，;；":
        start, end = _strip(text, start, end - 1)
    return start, end


def _special(tokenizer: Tokenizer, token: str) -> int:
    """Id of a special token."""
    number: int | None = tokenizer.token_to_id(token)
    if number is None:
        raise PromptError(f"the tokenizer has no {token} token")
    return number


def _plain(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of ordinary text."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    specials = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    if specials.intersection(ids):
        raise PromptError("the instruction spells out a special token")
    return ids
