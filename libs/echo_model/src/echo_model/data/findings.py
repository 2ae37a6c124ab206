"""Reads structured findings out of an English chest radiograph report by rules: is it there, on which side, says who.

One mention is judged inside its clause: a negation reaches forward over a list ("no effusion, consolidation or
pneumothorax") and stops at "but", at a verb that starts a new statement, or at a comma with a new description; a
negation may also follow ("... is not seen", "... has resolved"), and may itself be denied ("not free of", "has not
resolved", "nearly resolved"). Statements of normality count as absence ("the costophrenic angles are sharp").
Anything hedged is ``uncertain``. Sections and phrases about history, reasons, technique and advice are passed over.
The vocabulary lies in ``findings_lexicon``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from echo_model.data import findings_lexicon as lexicon
from echo_model.data.findings_sides import Hit, side_of
from echo_model.data.labels import FINDINGS, Side

__all__ = [
    "FINDINGS",
    "FindingMention",
    "State",
    "Statement",
    "extract_findings",
    "merge_statements",
    "read_statements",
]

State = Literal["present", "absent", "uncertain"]
Section = Literal["findings", "impression"]

_LONGEST_CLAUSE = 500
_BLANKS = re.compile(r"[ \t]{2,}")

_RANK: dict[State, int] = {"absent": 0, "uncertain": 1, "present": 2}


@dataclass(frozen=True, slots=True)
class FindingMention:
    """What a report says about one finding.

    ``side`` is the patient's, ``"none"`` when no side is stated or none applies; ``sentence`` is the sentence that
    decided it, as written but for its blanks and wrapped lines.
    """

    state: State
    side: Side
    sentence: str


@dataclass(frozen=True, slots=True)
class Statement:
    """One mention of one finding, before mentions are merged. Fields as in `FindingMention`."""

    finding: str
    state: State
    side: Side
    sentence: str


def extract_findings(text: str) -> dict[str, FindingMention]:
    """Findings that ``text`` speaks of, in the order of ``FINDINGS``; what it does not mention is left out.

    Several mentions of one finding are merged: present beats uncertain beats absent, and sides of equal states add up.
    Never raises.
    """
    return merge_statements(read_statements(text))


def merge_statements(statements: list[Statement]) -> dict[str, FindingMention]:
    """One mention a finding, in the order of ``FINDINGS``, merged as `extract_findings` does; their order is no matter.

    Where the deciding state has no side, that of a hedged mention serves.
    """
    merged: dict[str, FindingMention] = {}
    for name in FINDINGS:
        said = [statement for statement in statements if statement.finding == name]
        if not said:
            continue
        top: State = max((statement.state for statement in said), key=_RANK.__getitem__)
        deciding = [statement for statement in said if statement.state == top]
        sided = [statement for statement in deciding if statement.side != "none"]
        told = sided or [statement for statement in said if statement.side != "none"]
        sides = {statement.side for statement in told}
        side: Side = "none" if not sides else "both" if len(sides) > 1 else sides.pop()
        merged[name] = FindingMention(top, side, (sided or deciding)[0].sentence)
    return merged


def read_statements(text: str) -> list[Statement]:
    """Every mention in the order of the text. Never raises."""
    return [
        Statement(finding, state, side, sentence)
        for _, sentence in told_sentences(text)
        for clause in _clauses(sentence)
        for finding, state, side in _read_clause(clause)
    ]


def _clauses(sentence: str) -> Iterator[str]:
    """Parts of a sentence that are judged alone; what is too long for a clause (a decoder in a loop) is cut."""
    for clause in lexicon.CLAUSE_BREAK.split(sentence):
        while len(clause) > _LONGEST_CLAUSE:
            cut = clause.rfind(" ", 1, _LONGEST_CLAUSE)
            cut = _LONGEST_CLAUSE if cut < 0 else cut
            yield clause[:cut]
            clause = clause[cut:]
        yield clause


def told_sentences(text: str) -> list[tuple[Section, str]]:
    """The sentences about this image with their section: history, reason, technique and comparison are left out.

    Text ahead of any heading counts as findings. A heading that names a region stays with its sentence.
    """
    text = _BLANKS.sub(" ", text)
    parts: list[tuple[Section, str]] = []
    section: Section = "findings"
    position, told = 0, True
    headings = list(lexicon.HEADING.finditer(text))
    for index, match in enumerate(headings):
        if told:
            parts.append((section, text[position : match.start()]))
        position = match.end()
        told = match["told"] is not None
        if told:
            whole = lexicon.WHOLE_REPORT.fullmatch(match["told"].lower())
            section = "impression" if whole and whole["summed"] else "findings"
            if not whole:  # "Lungs: clear" says less without its heading
                position = match.start("told")
        else:
            position = _untold_end(text, position, is_last=index + 1 == len(headings))
            stop = headings[index + 1].start() if index + 1 < len(headings) else len(text)
            section, told, position = "findings", position < stop, min(position, stop)
    if told:
        parts.append((section, text[position:]))
    return [
        (name, sentence)
        for name, part in parts
        for piece in lexicon.SENTENCE_END.split(lexicon.SOFT_WRAP.sub(" ", part))
        if (sentence := piece.strip())
    ]


def _untold_end(text: str, start: int, *, is_last: bool) -> int:
    """Where a section that speaks of something else ends: at an empty line, or with its sentence if nothing follows."""
    while start < len(text) and text[start].isspace():
        start += 1
    paragraph = lexicon.PARAGRAPH.search(text, start)
    end = paragraph.start() if paragraph else len(text)
    if is_last and not paragraph:
        sentence = lexicon.SENTENCE_END.search(text, start)
        end = sentence.start() if sentence else len(text)
    return end


def _read_clause(clause: str) -> list[tuple[str, State, Side]]:
    low = clause.lower()
    if not lexicon.WORTH_READING.search(low):
        return []
    low = lexicon.ASIDE.sub("", low)
    found: list[tuple[str, State, Side]] = []
    for pattern, names in lexicon.NORMAL_STATEMENTS:
        match = pattern.search(low)
        if match and not lexicon.NOT_NORMAL.search(low[: match.end()]):
            found.extend((name, "absent", "none") for name in names)
    hits = _hits(low)
    for index, hit in enumerate(hits):
        if _is_no_statement(low[: hit.start]):
            continue
        state = _state(low, index, hits)
        found.append((hit.finding, state, side_of(low, hit, hits) if state != "absent" else "none"))
    return found


def _hits(low: str) -> list[Hit]:
    hits = [
        Hit(name, match.start(), match.end())
        for name, pattern in lexicon.MENTIONS.items()
        for match in pattern.finditer(low)
    ]
    return sorted(hits, key=lambda hit: (hit.start, -hit.end))


def _is_no_statement(before: str) -> bool:
    """Whether history, advice or a look-alike ahead of a mention reaches it."""
    last = None
    for match in lexicon.NOT_A_STATEMENT.finditer(before):
        last = match
    return last is not None and not lexicon.STATEMENT_AGAIN.search(before, last.end())


def _state(low: str, index: int, hits: list[Hit]) -> State:
    hit = hits[index]
    before, own, after = low[: hit.start], low[hit.start : hit.end], _after(low, index, hits)
    if lexicon.UNCERTAIN_AFTER.search(after):
        return "uncertain"
    if lexicon.NEGATED_INSIDE.search(own) or _negated_before(before, low[hit.start :]):
        return "absent"
    if lexicon.NEGATED_AFTER.match(after) or lexicon.NEGATED_LATER.search(after):
        return "absent"
    if lexicon.UNCERTAIN_BEFORE.search(_last_statement(before)) or lexicon.UNCERTAIN_INSIDE.search(own):
        return "uncertain"
    return "present"


def _after(low: str, index: int, hits: list[Hit]) -> str:
    """What follows a mention, or the list that it is part of, up to the next mention and the next comma."""
    end = hits[index].end
    # "There is an effusion and pneumonia cannot be excluded": what follows is said of the second one alone.
    told = lexicon.NEW_STATEMENT.search(low, 0, hits[index].start) is not None
    for later in hits[index + 1 :]:
        glue = lexicon.LIST_GLUE.fullmatch(low, end, later.start)
        if later.start < end or (glue and not (told and "and" in glue[0])):
            end = max(end, later.end)
        else:
            return re.split(r"[,;]", low[end : later.start], maxsplit=1)[0]
    rest = low[end:]
    return rest if re.search(r"\b(?:or|nor)\b", rest) else re.split(r"[,;]", rest, maxsplit=1)[0]


def _negated_before(before: str, rest: str) -> bool:
    """Whether a negation ahead of a mention reaches it."""
    matches = [
        match
        for match in lexicon.NEGATION.finditer(before)
        if not lexicon.FALSE_NEGATION.match(before[match.start() :] + rest)
        and not (lexicon.DENIABLE.fullmatch(match[0]) and lexicon.DENIED_NEGATION.search(before[: match.start()]))
    ]
    if not matches:
        return False
    between = before[matches[-1].end() :]
    if lexicon.NEW_STATEMENT.search(between):
        return False
    described = lexicon.NEW_DESCRIPTION.search(between)
    if described and matches[-1][0].endswith(" of") and lexicon.SAME_LIST.fullmatch(described[0]):
        return True  # "removal of the line and the tube"
    return described is None or bool(re.search(r"\b(?:or|nor)\b", between[described.start() :] + rest))


def _last_statement(before: str) -> str:
    """The text ahead of a mention back to the comma or verb that ends the statement before it."""
    parts = re.split(r"[,;]|\band there (?:is|are)\b", before)
    return parts[-1] if len(parts) == 1 or not re.search(r"\b(?:or|and|versus)\s*$", parts[-1]) else before
