"""BLEU-4, METEOR and all text scores together, over the same words as `text_metrics`.

METEOR here has the exact and the stem stage only: no WordNet synonyms, and a plain suffix stemmer of its own. Its
figures are a little lower than those of the full tool and compare with themselves alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from echo_model.evaluation.text_metrics import cider, rouge_l, words

BLEU_LONGEST: Final = 4

_SUFFIX = re.compile(r"(?:ational|ations?|ingly|edly|ously|ness|ments?|ings?|ions?|ally|ies|ed|ly|es|s|al|y)$")


def bleu4(candidates: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU-4 with one reference each (Papineni et al. 2002, section 2), from 0 to 1, not smoothed.

    Geometric mean of the clipped n-gram precisions for n = 1 to 4 over all texts together, times the brevity penalty
    exp(1 - r / c) when the texts are shorter (c words) than the references (r words). 0 when an order has no match.
    Raises ValueError when the numbers differ or nothing is given.
    """
    if not candidates or len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} texts and {len(references)} references cannot be compared")
    said, wanted = [words(text) for text in candidates], [words(text) for text in references]
    logs = 0.0
    for n in range(1, BLEU_LONGEST + 1):
        matched = total = 0
        for text, reference in zip(said, wanted, strict=True):
            ngrams = _ngrams(text, n)
            matched += sum((ngrams & _ngrams(reference, n)).values())
            total += sum(ngrams.values())
        if not matched:
            return 0.0
        logs += math.log(matched / total)
    length, other = sum(map(len, said)), sum(map(len, wanted))
    penalty = min(0.0, 1 - other / length)
    return math.exp(penalty + logs / BLEU_LONGEST)


def meteor(candidate: str, reference: str) -> float:
    """METEOR (Banerjee and Lavie 2005) without synonyms, from 0 to 1.

    With m aligned words, P = m / words of the candidate, R = m / words of the reference, in c runs of neighbours in
    both: 10 P R / (R + 9 P) * (1 - 0.5 (c / m)^3). Words are aligned first where they are equal, then
    where their stems are; of equal ones, the one that goes on with a run is taken, else the first that is free.
    """
    said, wanted = words(candidate), words(reference)
    aligned = _align(said, wanted)
    if not aligned:
        return 0.0
    matches = len(aligned)
    precision, recall = matches / len(said), matches / len(wanted)
    places = sorted(aligned.items())
    runs = 1 + sum(later != (place + 1, other + 1) for (place, other), later in pairwise(places))
    return 10 * precision * recall / (recall + 9 * precision) * (1 - 0.5 * (runs / matches) ** 3)


def text_scores(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """``rouge_l`` and ``meteor`` (means over the texts, 0 to 1), ``bleu4`` (0 to 1) and ``cider`` (0 to 10).

    Raises ValueError when the numbers differ or nothing is given.
    """
    scores = {"bleu4": bleu4(texts, references), "cider": cider(texts, references)}
    pairs = list(zip(texts, references, strict=True))
    for name, metric in (("rouge_l", rouge_l), ("meteor", meteor)):
        scores[name] = sum(metric(text, reference) for text, reference in pairs) / len(pairs)
    return {name: round(scores[name], 4) for name in ("rouge_l", "cider", "bleu4", "meteor")}


def stem(word: str) -> str:
    """A word without a common ending; what is left has at least three letters."""
    match = _SUFFIX.search(word)
    return word[: match.start()] if match and match.start() >= 3 else word


def _align(said: Sequence[str], wanted: Sequence[str]) -> dict[int, int]:
    """Place in ``wanted`` for every aligned place in ``said``."""
    aligned: dict[int, int] = {}
    used: set[int] = set()
    for key in (str, stem):
        places: dict[str, list[int]] = defaultdict(list)
        for place, word in enumerate(wanted):
            places[key(word)].append(place)
        for place, word in enumerate(said):
            free = [other for other in places[key(word)] if other not in used] if place not in aligned else []
            if free:
                following = aligned.get(place - 1, -2) + 1
                aligned[place] = following if following in free else free[0]
                used.add(aligned[place])
    return aligned


def _ngrams(text: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(text[start : start + n]) for start in range(len(text) - n + 1))
