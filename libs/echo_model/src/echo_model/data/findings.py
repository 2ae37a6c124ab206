"""Reads structured findings out of an English chest radiograph report by rules: is it there, on which side, says who.

One mention is judged inside its clause: a negation reaches forward over a list ("no effusion, consolidation or
pneumothorax") and stops at "but", at a verb that starts a new statement, or at a comma with a new description; a
negation may also follow ("... is not seen", "... has resolved"). Statements of normality count as absence
("the costophrenic angles are sharp"). Anything hedged is ``uncertain``. The vocabulary lies in ``findings_lexicon``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from echo_model.data import findings_lexicon as lexicon
from echo_model.data.labels import FINDINGS, SIDED, Side

__all__ = ["FINDINGS", "FindingMention", "State", "extract_findings"]

State = Literal["present", "absent", "uncertain"]

_RANK: dict[State, int] = {"absent": 0, "uncertain": 1, "present": 2}


@dataclass(frozen=True, slots=True)
class FindingMention:
    """What a report says about one finding.

    ``side`` is the patient's, ``"none"`` when no side is stated or none applies; ``sentence`` is the sentence that
    decided it, as written.
    """

    state: State
    side: Side
    sentence: str


@dataclass(frozen=True, slots=True)
class _Hit:
    """A mention inside a clause."""

    finding: str
    start: int
    end: int


def extract_findings(text: str) -> dict[str, FindingMention]:
    """Findings that ``text`` speaks of, in the order of ``FINDINGS``; what it does not mention is left out.

    Several mentions of one finding are merged: present beats uncertain beats absent, and sides of equal states add up.
    Never raises.
    """
    merged: dict[str, FindingMention] = {}
    for sentence in lexicon.SENTENCE_END.split(text):
        for clause in lexicon.CLAUSE_BREAK.split(sentence):
            for finding, state, side in _read_clause(clause):
                mention = FindingMention(state, side, sentence.strip())
                merged[finding] = _merge(merged.get(finding), mention)
    return {name: merged[name] for name in FINDINGS if name in merged}


def _merge(old: FindingMention | None, new: FindingMention) -> FindingMention:
    if old is None or _RANK[new.state] > _RANK[old.state]:
        if old is not None and new.side == "none" and old.state != "absent":
            return FindingMention(new.state, old.side, new.sentence)
        return new
    if new.state == old.state and new.side != "none" and new.side != old.side:
        side: Side = new.side if old.side == "none" else "both"
        return FindingMention(old.state, side, old.sentence if old.side != "none" else new.sentence)
    return old


def _read_clause(clause: str) -> list[tuple[str, State, Side]]:
    low = clause.lower()
    found: list[tuple[str, State, Side]] = []
    for pattern, names in lexicon.NORMAL_STATEMENTS:
        match = pattern.search(low)
        if match and not lexicon.NOT_NORMAL.search(low[: match.end()]):
            found.extend((name, "absent", "none") for name in names)
    hits = _hits(low)
    for hit in hits:
        if lexicon.NOT_A_STATEMENT.search(low[: hit.start]):
            continue
        state = _state(low, hit)
        found.append((hit.finding, state, _side(low, hit, hits) if state != "absent" else "none"))
    return found


def _hits(low: str) -> list[_Hit]:
    hits = [
        _Hit(name, match.start(), match.end())
        for name, pattern in lexicon.MENTIONS.items()
        for match in pattern.finditer(low)
    ]
    return sorted(hits, key=lambda hit: (hit.start, -hit.end))


def _state(low: str, hit: _Hit) -> State:
    before, after = low[: hit.start], low[hit.end :]
    if not re.search(r"\b(?:or|nor)\b", after):
        after = re.split(r"[,;]", after, maxsplit=1)[0]
    own = low[hit.start : hit.end]
    if lexicon.UNCERTAIN_AFTER.search(after):
        return "uncertain"
    if lexicon.NEGATED_INSIDE.search(own) or _negated_before(before, low[hit.start :]):
        return "absent"
    if lexicon.NEGATED_AFTER.match(after) or lexicon.NEGATED_LATER.search(after):
        return "absent"
    if lexicon.UNCERTAIN_BEFORE.search(_last_statement(before)) or lexicon.UNCERTAIN_INSIDE.search(own):
        return "uncertain"
    return "present"


def _negated_before(before: str, rest: str) -> bool:
    """Whether a negation ahead of a mention reaches it."""
    matches = [
        m for m in lexicon.NEGATION.finditer(before) if not lexicon.FALSE_NEGATION.match(before[m.start() :] + rest)
    ]
    if not matches:
        return False
    between = before[matches[-1].end() :]
    if lexicon.NEW_STATEMENT.search(between):
        return False
    is_list = bool(re.search(r"\b(?:or|nor)\b", between + rest))
    return is_list or not lexicon.NEW_DESCRIPTION.search(between + rest[:0])


def _last_statement(before: str) -> str:
    """The text ahead of a mention back to the comma or verb that ends the statement before it."""
    parts = re.split(r"[,;]|\band there (?:is|are)\b", before)
    return parts[-1] if len(parts) == 1 or not re.search(r"\b(?:or|and|versus)\s*$", parts[-1]) else before


def _side(low: str, hit: _Hit, hits: list[_Hit]) -> Side:
    """Side stated for a mention: ahead of it up to the mention before, else behind it up to the next one."""
    if hit.finding not in SIDED:
        return "none"
    others = [other for other in hits if other.end <= hit.start or other.start >= hit.end]
    start = max((other.end for other in others if other.end <= hit.start), default=0)
    end = min((other.start for other in others if other.start >= hit.end), default=len(low))
    inside = _sides_in(low[hit.start : hit.end])
    if inside != "none":
        return inside
    ahead = _sides_in(low[start : hit.start])
    behind_text = low[hit.end : end]
    if ahead != "none":
        return ahead
    behind = _sides_in(re.split(r",| and (?:a|an)\b", behind_text)[0] if end < len(low) else behind_text)
    if behind != "none":
        return behind
    # "right pneumothorax and effusion", "effusion and atelectasis on the left": a list shares its side.
    joined = re.compile(r"\s*(?:and|or|versus|vs\.?|with|with adjacent|and adjacent|,|,? associated)\s*")
    if start and joined.fullmatch(low[start : hit.start]):
        return _shared(low, hit, hits, forward=False)
    if end < len(low) and joined.fullmatch(behind_text):
        return _shared(low, hit, hits, forward=True)
    return "none"


def _shared(low: str, hit: _Hit, hits: list[_Hit], *, forward: bool) -> Side:
    """The side of the neighbour that a mention is joined with."""
    if forward:
        after = next(other for other in hits if other.start >= hit.end)
        return _sides_in(low[after.start :])
    earlier = [other for other in hits if other.end <= hit.start]
    return _sides_in(low[: earlier[-1].end])


def _sides_in(part: str) -> Side:
    part = lexicon.NOT_A_SIDE.sub(" ", part)
    left, right = bool(lexicon.LEFT.search(part)), bool(lexicon.RIGHT.search(part))
    if lexicon.BOTH.search(part) or (left and right):
        return "both"
    return "left" if left else "right" if right else "none"
