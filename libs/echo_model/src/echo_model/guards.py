"""Checks on generated text: garble, loops and low confidence, sentence by sentence.

One-step decoding fixes neighbouring tokens without seeing each other, so its typical failure is a doubled piece:
"subcutcutaneous", "right right", "no no". These checks look for exactly that. A flag never changes the text.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

from tokenizers import Tokenizer

from echo_model.prompt import Span

REPEATED_SUBWORD = "repeated_subword"
REPEATED_WORD = "repeated_word"
REPEATED_PUNCTUATION = "repeated_punctuation"
LOOP = "loop"
LOW_CONFIDENCE = "low_confidence"
OUT_OF_DOMAIN = "out_of_domain"
TRUNCATED = "truncated"
GARBLED = frozenset({REPEATED_SUBWORD, REPEATED_WORD, REPEATED_PUNCTUATION, LOOP})
"""Flags that mean a sentence is no proper language."""

_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*")
# Three letters or more twice in a row inside a word; for Chinese, three characters or more twice in a row.
_DOUBLED = re.compile(r"([^\W\d_]{3,})\1", re.IGNORECASE)
_DOUBLED_MARK = re.compile(r"([.,:;。，：；])\s*\1")
_TRUE_WORDS = frozenset({"murmur", "murmurs", "tartar", "beriberi"})
_TRUE_PAIRS = frozenset({"that", "had"})
_LONGEST_PHRASE = 6
_LOOP_GRAM, _LOOP_TIMES = 3, 3


def garble_flags(sentence: str) -> tuple[str, ...]:
    """Flags of one sentence, out of `repeated_subword`, `repeated_word`, `repeated_punctuation` and `loop`."""
    flags = []
    words = [word.lower() for word in _WORD.findall(sentence)]
    if any(_DOUBLED.search(word) and word not in _TRUE_WORDS for word in words):
        flags.append(REPEATED_SUBWORD)
    if any(first == second and first not in _TRUE_PAIRS for first, second in itertools.pairwise(words)):
        flags.append(REPEATED_WORD)
    if _DOUBLED_MARK.search(sentence):
        flags.append(REPEATED_PUNCTUATION)
    if _loops(words):
        flags.append(LOOP)
    return tuple(flags)


def repeated_sentences(sentences: Sequence[str]) -> list[bool]:
    """For each sentence whether the same words were already said by an earlier one."""
    seen: set[tuple[str, ...]] = set()
    repeated = []
    for sentence in sentences:
        words = tuple(word.lower() for word in _WORD.findall(sentence))
        repeated.append(bool(words) and words in seen)
        seen.add(words)
    return repeated


def token_spans(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[Span]:
    """Character span of every token in the decoded text; special tokens have empty spans."""
    ends = [len(tokenizer.decode(list(token_ids[: count + 1]))) for count in range(len(token_ids))]
    # A character whose bytes are spread over tokens decodes to a replacement until it is whole: keep spans in order.
    for at in range(1, len(ends)):
        ends[at] = max(ends[at], ends[at - 1])
    return list(zip([0, *ends[:-1]], ends, strict=True))


def confidence_of(span: Span, spans: Sequence[Span], confidences: Sequence[float]) -> tuple[float, float]:
    """Mean and lowest confidence of the tokens that overlap a stretch of text; (0, 0) when none does."""
    inside = [
        value for (start, end), value in zip(spans, confidences, strict=True) if start < span[1] and end > span[0]
    ]
    if not inside:
        return 0.0, 0.0
    return sum(inside) / len(inside), min(inside)


def _loops(words: list[str]) -> bool:
    """A phrase of two words or more said twice in a row, or three words that come back three times."""
    for length in range(2, _LONGEST_PHRASE + 1):
        for at in range(len(words) - 2 * length + 1):
            if words[at : at + length] == words[at + length : at + 2 * length]:
                return True
    grams = Counter(zip(*(words[shift:] for shift in range(_LOOP_GRAM)), strict=False))
    return any(count >= _LOOP_TIMES for count in grams.values())
