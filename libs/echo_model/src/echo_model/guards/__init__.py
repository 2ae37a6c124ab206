"""Checks on generated text: garble, loops, unknown words, unseen word order, low confidence, contradictions.

None of them changes a text; the engine decides what to decode again, and what is left becomes a flag.
"""

from __future__ import annotations

from echo_model.guards.contradiction import contradictions
from echo_model.guards.flags import (
    CONTRADICTION,
    GARBLED,
    IMAGE_NOT_READ,
    LOOP,
    LOW_CONFIDENCE,
    OUT_OF_DOMAIN,
    REPEATED_PUNCTUATION,
    REPEATED_SUBWORD,
    REPEATED_WORD,
    TRUNCATED,
    UNKNOWN_WORD,
    WORD_ORDER,
)
from echo_model.guards.garble import Defect, defects, flags_within, garble_flags
from echo_model.guards.lexicon import LEXICON_FILE, Lexicon, load_lexicon
from echo_model.guards.tokens import confidence_of, token_spans

__all__ = [
    "CONTRADICTION",
    "GARBLED",
    "IMAGE_NOT_READ",
    "LEXICON_FILE",
    "LOOP",
    "LOW_CONFIDENCE",
    "OUT_OF_DOMAIN",
    "REPEATED_PUNCTUATION",
    "REPEATED_SUBWORD",
    "REPEATED_WORD",
    "TRUNCATED",
    "UNKNOWN_WORD",
    "WORD_ORDER",
    "Defect",
    "Lexicon",
    "confidence_of",
    "contradictions",
    "defects",
    "flags_within",
    "garble_flags",
    "load_lexicon",
    "token_spans",
]
