"""Defects put into good report texts on purpose, where one-step decoding makes them; seeded, each with its place."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from echo_model.guards.units import cut
from echo_model.prompt import parse_sections

#: Words that no chest radiograph is described with.
FOREIGN: Final = (
    "acoustic", "almond", "anchor", "banana", "barley", "bicycle", "blanket", "bracelet", "butter", "calendar",
    "candle", "carpet", "ceiling", "cinnamon", "concert", "copper", "cushion", "dolphin", "engine", "envelope",
    "festival", "furniture", "garden", "guitar", "hammer", "harvest", "insurance", "kettle", "keyboard", "ladder",
    "lantern", "mortgage", "mustard", "parliament", "penguin", "pepper", "poetry", "railway", "saddle", "sandwich",
    "spinach", "tenant", "ticket", "umbrella", "velvet", "violin", "voyage", "wallet", "weather", "window",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A text with one defect of a kind between the characters `start` and `end`."""

    kind: str
    text: str
    start: int
    end: int


Inject = Callable[[random.Random, list[str], int], Case | None]
"""From a random source, the token texts of a report and the block length to a case; None when it cannot be done."""


def repeated_at_join(rng: random.Random, pieces: list[str], block: int) -> Case | None:
    """Both tokens at a join of two blocks say the same, or a word's middle there is written twice."""
    joins = range(rng.randrange(1, block + 1), len(pieces), block)
    if not joins:
        return None
    at = rng.choice(joins)
    start = len("".join(pieces[: at - 1]))
    if rng.random() < 0.5:
        changed = "".join([*pieces[:at], pieces[at - 1], *pieces[at + 1 :]])
        return _case("repeated_at_join", pieces, changed, start, start + 2 * len(pieces[at - 1]))
    text = "".join(pieces)
    words = [unit for unit in cut(text) if unit.is_word and unit.end > start and len(unit.text) >= 5]
    if not words:
        return None
    word = words[0]
    size = rng.randint(2, min(5, len(word.text) - 1))
    end = rng.randint(word.start + size, word.end)
    changed = text[:end] + text[end - size : end] + text[end:]
    return _case("repeated_at_join", pieces, changed, word.start, word.end + size)


def tail_loop(rng: random.Random, pieces: list[str], block: int) -> Case | None:
    """From somewhere in the second half on, the last 1 to 12 tokens come again and again."""
    at = rng.randrange(len(pieces) // 2, len(pieces) + 1)
    size = rng.randint(1, 12)
    loop = pieces[at - size : at]
    changed = "".join([*pieces[:at], *(loop * rng.randint(2, 6))])
    return _case("tail_loop", pieces, changed, len("".join(pieces[: at - size])), len(changed))


def foreign_word(rng: random.Random, pieces: list[str], block: int) -> Case | None:
    """A word gives way to one of another field, or to a mixture of two words of the report."""
    text = "".join(pieces)
    words = [unit for unit in cut(text) if unit.is_word and len(unit.text) >= 4]
    word, one, other = rng.choice(words), rng.choice(words).text, rng.choice(words).text
    new = rng.choice(FOREIGN)
    if rng.random() < 0.5:
        new = one[: rng.randint(2, len(one) - 1)].lower() + other[rng.randint(1, len(other) - 2) :].lower()
        if new in {unit.text.lower() for unit in words}:
            return None
    if word.text[0].isupper():
        new = new.capitalize()
    changed = text[: word.start] + new + text[word.end :]
    return _case("outside_lexicon", pieces, changed, word.start, word.start + len(new))


def swapped_tokens(rng: random.Random, pieces: list[str], block: int) -> Case | None:
    """Two neighbouring tokens change places."""
    at = rng.randrange(len(pieces) - 1)
    changed = "".join([*pieces[:at], pieces[at + 1], pieces[at], *pieces[at + 2 :]])
    start = len("".join(pieces[:at]))
    return _case("swapped_tokens", pieces, changed, start, start + len(pieces[at]) + len(pieces[at + 1]))


KINDS: Final[dict[str, Inject]] = {
    "repeated_at_join": repeated_at_join,
    "tail_loop": tail_loop,
    "outside_lexicon": foreign_word,
    "swapped_tokens": swapped_tokens,
}


def flipped_side(rng: random.Random, text: str) -> str | None:
    """The report with one side of its impression changed, so that the sections disagree; None when none is stated."""
    start, end = parse_sections(text).impression_span
    opposite = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    sides = [unit for unit in cut(text[start:end]) if unit.text in opposite]
    if not sides:
        return None
    side = rng.choice(sides)
    return text[: start + side.start] + opposite[side.text] + text[start + side.end :]


def inject(kind: str, reports: Sequence[list[str]], count: int, block: int, seed: int) -> list[Case]:
    """`count` cases of a kind, made from reports given as the texts of their tokens, in turn."""
    rng = random.Random(f"{kind} {seed}")
    cases: list[Case] = []
    tries = 0
    while len(cases) < count:
        case = KINDS[kind](rng, reports[tries % len(reports)], block)
        tries += 1
        if case is not None:
            cases.append(case)
        elif tries > 20 * count:
            raise ValueError(f"these reports are too short for defects of the kind {kind}")
    return cases


def _case(kind: str, pieces: list[str], changed: str, start: int, end: int) -> Case | None:
    """The case, unless nothing was changed after all."""
    return None if changed == "".join(pieces) else Case(kind, changed, start, end)
