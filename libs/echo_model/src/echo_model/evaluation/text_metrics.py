"""ROUGE-L and CIDEr: how much a text resembles a reference, whatever it says about the image.

Words are lower-cased runs of letters and digits; punctuation counts for nothing. Figures of tools that split words
otherwise differ a little.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

ROUGE_BETA: Final = 1.2
"""Weight of recall against precision, as in the evaluation of COCO captions."""

CIDER_LONGEST: Final = 4
"""n-grams of 1 to this many words, each length with the same weight."""

_WORD = re.compile(r"[^\W_]+")
Ngrams = Counter[tuple[str, ...]]


def words(text: str) -> list[str]:
    """The words that are compared."""
    return _WORD.findall(text.lower())


def rouge_l(candidate: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004, section 3), from 0 to 1.

    With the LCS of length l, P = l / words of the candidate, R = l / words of the reference, and beta = 1.2:
    (1 + beta^2) P R / (R + beta^2 P). 0 when one of the texts has no words.
    """
    said, wanted = words(candidate), words(reference)
    common = _lcs(said, wanted)
    if not common:
        return 0.0
    precision, recall, weight = common / len(said), common / len(wanted), ROUGE_BETA**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def cider(candidates: Sequence[str], references: Sequence[str]) -> float:
    """Mean CIDEr of texts against one reference each (Vedantam et al. 2015, section 3), times 10: from 0 to 10.

    For n = 1 to 4, the cosine of the TF-IDF vectors of n-grams; the mean of the four. The document frequencies are
    those of the references; an n-gram that no reference has counts as if one had it. This is CIDEr, not CIDEr-D: words
    are not stemmed, counts not clipped, lengths not punished.
    What all references share weighs nothing, so a corpus of one reference always scores 0, as does a text of fewer than
    n words in the n-th part. Raises ValueError when the numbers differ or nothing is given.
    """
    _same_number(candidates, references)
    documents = len(references)
    total = 0.0
    for n in range(1, CIDER_LONGEST + 1):
        wanted = [_ngrams(words(text), n) for text in references]
        frequency = Counter(ngram for ngrams in wanted for ngram in ngrams)
        for text, reference in zip(candidates, wanted, strict=True):
            total += _cosine(_ngrams(words(text), n), reference, frequency, documents)
    return 10.0 * total / (CIDER_LONGEST * documents)


def _same_number(texts: Sequence[str], references: Sequence[str]) -> None:
    if not texts or len(texts) != len(references):
        raise ValueError(f"{len(texts)} texts and {len(references)} references cannot be compared")


def _lcs(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence; one row of the table is kept."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for column, other in enumerate(second, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]


def _ngrams(text: Sequence[str], n: int) -> Ngrams:
    return Counter(tuple(text[start : start + n]) for start in range(len(text) - n + 1))


def _cosine(first: Ngrams, second: Ngrams, frequency: Ngrams, documents: int) -> float:
    """Cosine of two TF-IDF vectors; the lengths that term frequencies are divided by cancel out."""

    def weighted(ngrams: Ngrams) -> dict[tuple[str, ...], float]:
        return {ngram: count * math.log(documents / max(1, frequency[ngram])) for ngram, count in ngrams.items()}

    a, b = weighted(first), weighted(second)
    product = sum(value * b.get(ngram, 0.0) for ngram, value in a.items())
    norm = math.sqrt(sum(value**2 for value in a.values())) * math.sqrt(sum(value**2 for value in b.values()))
    return product / norm if norm else 0.0
