"""Names of what the checks find. They stand on sentences and reports, and never change a text."""

from __future__ import annotations

from typing import Final

REPEATED_SUBWORD: Final = "repeated_subword"
REPEATED_WORD: Final = "repeated_word"
REPEATED_PUNCTUATION: Final = "repeated_punctuation"
LOOP: Final = "loop"
UNKNOWN_WORD: Final = "unknown_word"
WORD_ORDER: Final = "word_order"
LOW_CONFIDENCE: Final = "low_confidence"
OUT_OF_DOMAIN: Final = "out_of_domain"
TRUNCATED: Final = "truncated"
CONTRADICTION: Final = "contradiction"
IMAGE_NOT_READ: Final = "image_not_read"

GARBLED: Final = frozenset({REPEATED_SUBWORD, REPEATED_WORD, REPEATED_PUNCTUATION, LOOP, UNKNOWN_WORD, WORD_ORDER})
"""Flags that mean a sentence is no proper language."""
