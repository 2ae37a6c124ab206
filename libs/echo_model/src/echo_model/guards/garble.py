"""Doubled pieces, loops, unknown words and unseen word orders in a text, each with its place.

One-step decoding fixes neighbouring tokens without seeing each other, so its typical failures are a doubled piece
("subcutcutaneous", "right right"), tokens in each other's places, and a tail that says the same again and again.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from echo_model.guards import flags
from echo_model.guards.lexicon import Lexicon
from echo_model.guards.units import Unit, cut
from echo_model.prompt import Span, parse_sections, sentence_spans

_WORD: Final = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*")
# Three letters or more twice in a row inside a word; for Chinese, three characters or more twice in a row.
_DOUBLED: Final = re.compile(r"([^\W\d_]{3,})\1", re.IGNORECASE)
_DOUBLED_MARK: Final = re.compile(r"([.,:;。，：；])\s*\1")
_TRUE_WORDS: Final = frozenset({"murmur", "murmurs", "tartar", "beriberi"})
_TRUE_PAIRS: Final = frozenset({"that", "had"})
_SENTENCE_MARKS: Final = frozenset(".!?:。！？；：")
_LONGEST_LOOP: Final = 48
_REREAD: Final = 160  # characters
_SHORTEST_LOOP: Final = 3  # letters and marks; two characters said twice are good Chinese
_GRAM, _TIMES = 3, 3


@dataclass(frozen=True, slots=True)
class Defect:
    """Something wrong in a text: its kind (a flag) and the characters `start` to `end` that it spans."""

    kind: str
    start: int
    end: int


def defects(
    text: str, lexicon: Lexicon | None = None, *, garble: bool = True, finished: bool = True, since: int = 0
) -> list[Defect]:
    """What is wrong in a report text, in the order of the places; nothing for a good one.

    Without `lexicon` words and their order are not judged; with `garble` off, doubled pieces and loops are not. While a
    text grows (`finished` off) its last word and its last sentence are not judged before they are whole.

    `since`: what ends at or before that character has been judged already and is left out. Only a stretch ahead of it
    is read again, so that a growing text costs little; a loop longer than that is found by a last look at the whole.
    """
    begin = 1 + max(text.rfind(mark, 0, max(0, since - _REREAD)) for mark in ".。")
    units = cut(text, begin, finished=finished)
    found: list[Defect] = []
    if garble:
        found += _doubled_pieces(text, units, lexicon)
        found += _loops(units)
        found += _sentences_again(text, units, begin, finished=finished)
    if lexicon is not None:
        doubled = [(defect.start, defect.end) for defect in found]
        found += [
            Defect(kind, start, end)
            for kind, start, end in lexicon.judge(units)
            if not any(left <= start and end <= right for left, right in doubled)
        ]
    return sorted(
        (defect for defect in dict.fromkeys(found) if defect.end > since),
        key=lambda defect: (defect.start, defect.end, defect.kind),
    )


def flags_within(found: Iterable[Defect], span: Span) -> tuple[str, ...]:
    """Kinds of the defects that touch a stretch of text, each once, in order."""
    return tuple(dict.fromkeys(defect.kind for defect in found if defect.start < span[1] and defect.end > span[0]))


def garble_flags(sentence: str) -> tuple[str, ...]:
    """Flags of one sentence, out of `repeated_subword`, `repeated_word`, `repeated_punctuation` and `loop`."""
    units = cut(sentence)
    kinds = {defect.kind for defect in (*_doubled_pieces(sentence, units, None), *_loops(units))}
    if _comes_back(units) is not None:
        kinds.add(flags.LOOP)
    order = (flags.REPEATED_SUBWORD, flags.REPEATED_WORD, flags.REPEATED_PUNCTUATION, flags.LOOP)
    return tuple(kind for kind in order if kind in kinds)


def _doubled_pieces(text: str, units: list[Unit], lexicon: Lexicon | None) -> list[Defect]:
    """Pieces inside a word, words and marks that stand there twice in a row."""
    found = []
    if not units:
        return []
    for match in _DOUBLED.finditer(text, units[0].start, units[-1].end):
        word = _word_around(text, match)
        if word.lower() not in _TRUE_WORDS and (lexicon is None or not lexicon.knows(word)):
            found.append(Defect(flags.REPEATED_SUBWORD, match.start(), match.end()))
    found += [
        Defect(flags.REPEATED_PUNCTUATION, *match.span()) for match in _DOUBLED_MARK.finditer(text, units[0].start)
    ]
    before: Unit | None = None
    for unit in units:
        if unit.is_word and len(unit.text) == 1 and unit.text > "\u2e7f":
            before = None  # a Chinese character may well be followed by itself
        elif unit.is_word:
            same = before is not None and before.text.lower() == unit.text.lower()
            if same and before is not None and unit.text.lower() not in _TRUE_PAIRS:
                found.append(Defect(flags.REPEATED_WORD, before.start, unit.end))
            before = unit
        elif unit.text in _SENTENCE_MARKS or unit.text[0].isdigit():
            before = None
    return found


def _word_around(text: str, match: re.Match[str]) -> str:
    """The whole word that a match lies in."""
    start, end = match.span()
    while start > 0 and text[start - 1].isalpha():
        start -= 1
    while end < len(text) and text[end].isalpha():
        end += 1
    return text[start:end]


def _loops(units: list[Unit]) -> list[Defect]:
    """Phrases of two units or more that are said twice in a row, over sentence ends as well.

    `run[d]` counts how many units in a row equal the one d places before; as many as d make a phrase said twice.
    """
    found: list[Defect] = []
    places: dict[str, list[int]] = {}
    run: dict[int, int] = {}
    for at, unit in enumerate(units):
        earlier = places.setdefault(unit.text.lower(), [])
        grown: dict[int, int] = {}
        for place in reversed(earlier):
            distance = at - place
            if distance > _LONGEST_LOOP:
                break
            grown[distance] = run.get(distance, 0) + 1
        for distance, length in grown.items():
            if distance >= 2 and length >= distance:
                phrase = units[at - distance + 1 : at + 1]
                if any(one.is_word for one in phrase) and sum(len(one.text) for one in phrase) >= _SHORTEST_LOOP:
                    first = next(one for one in units[at - 2 * distance + 1 :] if one.is_word)
                    found.append(Defect(flags.LOOP, first.start, unit.end))
                    break
        run = grown
        earlier.append(at)
    return _merged(found)


def _merged(found: list[Defect]) -> list[Defect]:
    """Overlapping loops as one."""
    merged: list[Defect] = []
    for defect in sorted(found, key=lambda one: one.start):
        if merged and defect.start < merged[-1].end:
            last = merged.pop()
            merged.append(Defect(last.kind, last.start, max(last.end, defect.end)))
        else:
            merged.append(defect)
    return merged


def _comes_back(units: list[Unit]) -> Span | None:
    """Where three words in a row are said for the third time in one sentence."""
    words = [unit for unit in units if unit.is_word]
    counts: dict[tuple[str, ...], int] = {}
    for at in range(len(words) - _GRAM + 1):
        gram = tuple(unit.text.lower() for unit in words[at : at + _GRAM])
        counts[gram] = counts.get(gram, 0) + 1
        if counts[gram] == _TIMES:
            return words[at].start, words[at + _GRAM - 1].end
    return None


def _sentences_again(text: str, units: list[Unit], begin: int, *, finished: bool) -> list[Defect]:
    """Sentences that were already said in their section, and those that go round in a circle."""
    sections = parse_sections(text)
    found = []
    for within in (sections.findings_span, sections.impression_span):
        said: set[tuple[str, ...]] = set()
        from_ = max(begin, within[0])
        at = bisect.bisect_left(units, from_, key=_start)
        for start, end in sentence_spans(text, from_, within[1]):
            first = at
            while at < len(units) and units[at].start < end:
                at += 1
            if not finished and end == len(text) and text[-1] not in ".!?。！？；":
                break  # more of this sentence is to come
            words = tuple(unit.text.lower() for unit in units[first:at] if unit.is_word)
            if words:
                if words in said:
                    found.append(Defect(flags.LOOP, start, end))
                circle = _comes_back(units[first:at]) if len(words) >= _GRAM * _TIMES else None
                if circle is not None:
                    found.append(Defect(flags.LOOP, *circle))
            said.add(words)
    return found


def _start(unit: Unit) -> int:
    return unit.start
