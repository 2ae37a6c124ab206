"""Reports "by exception" rewritten into a fixed anatomical order with something said of every region.

Sentences are kept word for word and only put in order; a denial that lists several regions is taken apart; sentences
that only interpret or advise go to the impression; a region that is passed over gets a sentence of normality, unless
anything in the report speaks against it. What is not about the image (history, technique, comparison) is left out.
The finding extractor reads the report before and after: when its labels differ, the plain order of the report is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from echo_model.data.findings import FindingMention, State, extract_findings, told_sentences
from echo_model.data.labels import Side
from echo_model.data.regions import DEFAULTS, NO_PNEUMOTHORAX, REGION_OF, REGIONS, Region, region_of

Labels = dict[str, tuple[State, Side]]

NORMAL_IMPRESSION: Final = "No acute cardiopulmonary abnormality."

_NUMBERING = re.compile(r"^(?:\(?\d{1,2}[.)](?=\s|$)|[-*•])\s*")
_HEADING = re.compile(r"^(?:findings?|impressions?)\s*:\s*", re.IGNORECASE)
_TECHNIQUE = re.compile(
    r"^(?:(?:a |the )?(?:pa|ap|frontal|lateral|portable|single|two|one|upright|supine|semi-?erect|mobile"
    r"|view)\b[\w ,/-]*"
    r"\b(?:views?|radiographs?|films?|images?|projections?|chest)\b[\w ,/-]*|(?:comparison|compared) (?:is|was"
    r"|made|with|to)\b"
    r"[\w ,/-]*|there (?:is|are) no (?:prior|previous|comparison)\b[\w ,/-]*|no (?:prior|previous"
    r"|comparison)\b[\w ,/-]*"
    r"|(?:findings|results?|this) (?:were|was|have been|has been) (?:discussed|communicated|called"
    r"|telephoned)\b.*)\.?$",
    re.IGNORECASE,
)
_INTERPRETS = re.compile(
    r"^(?:(?:this|these|the) (?:findings?|appearances?|changes|constellation|pattern|picture)|findings"
    r"|appearances|this"
    r"|which|overall|together|taken together)\b.*\b(?:consistent|compatible|keeping|suggest\w*|represent\w*"
    r"|reflect\w*|may|might"
    r"|could|likely|concerning|suspicious|favou?r\w*|due|indicat\w*|typical|diagnostic|worrisome)\b"
    r"|\b(?:cannot|can not|could not) (?:be )?(?:\w+ )?(?:excluded?|ruled out)\b"
    r"|\b(?:recommend\w*|advis(?:ed|able)|suggested|is warranted|should be (?:considered|obtained|repeated)"
    r"|clinical correlation"
    r"|correlat(?:e|ion)|follow-?up (?:\w+ )?(?:to|in|is|with|after|ct|chest|radiograph\w*|film\w*)"
    r"|consider(?:ation)?"
    r"|(?:may|would) help|differential (?:diagnosis )?includes)\b",
    re.IGNORECASE,
)
_DENIED_LIST = re.compile(
    r"^(?P<head>(?:there (?:is|are|was|were) )?no(?:(?: (?:radiographic|definite|convincing))?"
    r" (?:evidence|signs?) (?:of|for))?) (?P<items>[^.;]+?)"
    r"(?P<tail> (?:is|are|was|were)(?: \w+)? (?:seen|identified|present|noted|visuali[sz]ed|visible|evident|detected"
    r"|demonstrated|appreciated|shown|found))?\.?$",
    re.IGNORECASE,
)
_LIST_SIGN = re.compile(r"\s*(?:,\s*(?:and|or|nor)?|\b(?:and|or|nor)\b|/)\s*(?:no\s+)?", re.IGNORECASE)
#: In a listed denial: the list is no plain one.
_NO_PLAIN_LIST = re.compile(
    r"\b(?:but|except|other than|apart|although|however|with|without|change|interval|which|that|to suggest"
    r"|since|is|are|has)\b",
    re.IGNORECASE,
)
_TWO_STATEMENTS = re.compile(r";\s+|,?\s+(?:and|but)\s+(?=there (?:is|are)\b)", re.IGNORECASE)
_DENIES = re.compile(r"^(?:there (?:is|are|was|were) )?(?:no|neither|without)\b(?! (?:\w+ )?change)", re.IGNORECASE)
#: Said of the whole chest: a summary wherever it stands.
_SUMMARY = re.compile(
    r"^(?:there is )?no (?:evidence of )?(?:acute |active |significant )*(?:cardio-?pulmonary|intrathoracic"
    r"|cardiothoracic"
    r"|thoracic|chest)?(?: \w+)?\s?(?:abnormalit(?:y|ies)|process|disease|pathology|findings?)(?: (?:is|are) \w+)?\.$"
    r"|^(?:normal|unremarkable|negative)(?: \w+){0,2} (?:chest|study|examination|exam|radiograph)\b[\w -]*\.$",
    re.IGNORECASE,
)
_NORMAL = re.compile(
    r"\b(?:normal(?:ly)?|unremarkable|clear|intact|sharp|midline|central|symmetric(?:al)?|within normal limits"
    r"|well aerated"
    r"|not (?:\w+ )?(?:enlarged|widened|displaced|deviated|dilated|seen|identified|distended)|preserved|patent)\b",
    re.IGNORECASE,
)
_QUALIFIES = re.compile(
    r"\b(?:but|except|apart|aside|although|however|other than|otherwise|mild\w*|moderate\w*|severe\w*|small"
    r"|large|tiny|trace"
    r"|tortuous|calcifi\w+|elevat\w+|opacit\w+|prominent|increased|decreased|degenerative|upper limits"
    r"|no longer|borderline"
    r"|thicken\w+|scar\w*|new|old|healed|post\w*|status)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class NormalisedReport:
    """A report in the fixed order.

    ``regions``: the sentences of every region; ``impression``: those of the impression; ``backend``: who wrote it
    (``rules`` or ``chat``); ``notes``: why it is not what was asked for (a fallback), empty when all went well.
    """

    regions: Mapping[Region, tuple[str, ...]]
    impression_sentences: tuple[str, ...]
    backend: str = "rules"
    notes: tuple[str, ...] = ()

    @property
    def findings(self) -> str:
        """The findings section."""
        return " ".join(sentence for region in REGIONS for sentence in self.regions[region])

    @property
    def impression(self) -> str:
        """The impression section."""
        return " ".join(self.impression_sentences)

    @property
    def text(self) -> str:
        """Both sections under their headings, as the model is trained on."""
        return f"Findings: {self.findings} Impression: {self.impression}"


class Normaliser(Protocol):
    """Turns a raw report into a normalised one. Never raises for what a report says."""

    def normalise(self, report: str) -> NormalisedReport:
        """The report in the fixed order."""
        ...


def positive_labels(text: str) -> Labels:
    """Findings that are there or suspected, with their state and side."""
    return {name: _label(mention) for name, mention in extract_findings(text).items() if mention.state != "absent"}


def label_changes(before: str, after: str) -> tuple[str, ...]:
    """What the extractor reads differently in ``after``; empty when nothing was lost or invented.

    Present and uncertain findings must agree in state and side, and no explicit denial may be lost.
    """
    old, new = extract_findings(before), extract_findings(after)
    changes = []
    for name in old.keys() | new.keys():
        one, other = old.get(name), new.get(name)
        if one is None and other is not None and other.state != "absent":
            changes.append(f"{name}: invented ({other.state})")
        elif one is not None and (other is None or _label(one) != _label(other)):
            now = "lost" if other is None else f"{other.state} {other.side}"
            changes.append(f"{name}: {one.state} {one.side} became {now}")
    return tuple(sorted(changes))


def _label(mention: FindingMention) -> tuple[State, Side]:
    return mention.state, mention.side


def reads_normal(sentence: str) -> bool:
    """Whether a sentence says only that something is absent or normal. In doubt it does not."""
    if any(mention.state != "absent" for mention in extract_findings(sentence).values()) or _QUALIFIES.search(sentence):
        return False
    return bool(_DENIES.match(sentence) or _NORMAL.search(sentence))


def report_sentences(report: str) -> tuple[list[str], list[str]]:
    """Sentences of the findings and of the impression, without headings, numbering and technique."""
    findings: list[str] = []
    impression: list[str] = []
    for section, raw in told_sentences(report):
        sentence = _HEADING.sub("", _NUMBERING.sub("", raw)).strip()
        if not re.search(r"\w", sentence) or (_TECHNIQUE.match(sentence) and not extract_findings(sentence)):
            continue
        sentence = sentence if sentence[-1] in ".!?" else sentence.rstrip(",;:") + "."
        (impression if section == "impression" else findings).append(sentence)
    return findings, impression


class RuleNormaliser:
    """The rules of this module: offline, and always the same answer for the same report."""

    def normalise(self, report: str) -> NormalisedReport:
        """The report in the fixed order; see the module."""
        findings, summary = report_sentences(report)
        result = _arranged(findings, summary)
        changes = label_changes(report, result.text)
        if not changes:
            return result
        plain = _placed(findings, summary)
        return NormalisedReport(plain, tuple(summary) or tuple(findings), notes=("kept as written", *changes))


def _arranged(findings: Sequence[str], summary: Sequence[str]) -> NormalisedReport:
    moved = [sentence for sentence in findings if _sums_up(sentence)]
    described = [piece for sentence in findings if not _sums_up(sentence) for piece in _taken_apart(sentence)]
    impression = list(dict.fromkeys([*summary, *moved]))
    regions = {region: list(sentences) for region, sentences in _placed(described, impression).items()}
    positive = positive_labels(" ".join([*described, *impression]))
    touched = {REGION_OF[name] for name in positive}
    told = extract_findings(" ".join([*described, *impression]))
    for region in REGIONS:
        if not regions[region]:
            placed = {sentence for sentences in regions.values() for sentence in sentences}
            copied = _from_impression(region, impression, told)
            regions[region] = [sentence for sentence in copied if sentence not in placed]
        if not regions[region] and region not in touched:
            regions[region] = [DEFAULTS[region]]
    if "pneumothorax" not in told:
        regions["lungs"].append(NO_PNEUMOTHORAX)
    if not impression:
        impression = [sentence for sentence in described if not reads_normal(sentence)] or [NORMAL_IMPRESSION]
    return NormalisedReport({region: tuple(regions[region]) for region in REGIONS}, tuple(impression))


def _sums_up(sentence: str) -> bool:
    """Whether a sentence interprets, advises or judges the chest as a whole."""
    return bool(_INTERPRETS.search(sentence) or _SUMMARY.match(sentence))


def _placed(described: Sequence[str], impression: Sequence[str]) -> dict[Region, tuple[str, ...]]:
    """Every sentence in its region; one that no word places goes to the region of the sentence before it."""
    regions: dict[Region, list[str]] = {region: [] for region in REGIONS}
    last: Region = "lungs" if described or not impression else "thorax"
    for sentence in described:
        last = _region(sentence) or last
        regions[last].append(sentence)
    return {region: tuple(sentences) for region, sentences in regions.items()}


def _region(sentence: str) -> Region | None:
    """The region of what the sentence says is there, else of its words."""
    mentions = extract_findings(sentence)
    positive = [name for name, mention in mentions.items() if mention.state != "absent"]
    if len({REGION_OF[name] for name in positive}) == 1:
        return REGION_OF[positive[0]]
    return region_of(sentence) or (REGION_OF[next(iter(mentions))] if mentions else None)


def _from_impression(region: Region, impression: Sequence[str], told: Mapping[str, FindingMention]) -> list[str]:
    """What only the impression says of a region, so that the findings do not speak against it."""
    names = [name for name, of in REGION_OF.items() if of == region and name in told and told[name].state != "absent"]
    deciding = {told[name].sentence.rstrip(".") for name in names}
    return [
        sentence
        for sentence in impression
        if sentence.rstrip(".") in deciding
        or (
            not names
            and _region(sentence) == region
            and not reads_normal(sentence)
            and not _INTERPRETS.search(sentence)
        )
    ]


def _taken_apart(sentence: str) -> list[str]:
    """A sentence of two statements, or a denial of several regions, as sentences of their own."""
    pieces = [_as_sentence(piece) for piece in _TWO_STATEMENTS.split(sentence)]
    if len(pieces) > 1 and _same_labels(sentence, pieces):
        return [part for piece in pieces for part in _denials(piece)]
    return _denials(sentence)


def _denials(sentence: str) -> list[str]:
    match = _DENIED_LIST.match(sentence)
    if not match or _NO_PLAIN_LIST.search(match["items"]):
        return [sentence]
    by_region: dict[Region, list[str]] = {}
    last: Region | None = None
    for item in _LIST_SIGN.split(match["items"]):
        last = _region(item) or last
        if last is None:
            return [sentence]
        by_region.setdefault(last, []).append(item)
    if len(by_region) < 2:
        return [sentence]
    head, tail = match["head"], match["tail"] or ""
    pieces = [f"{head} {_listed(items)}{tail}." for items in by_region.values()]
    return pieces if _same_labels(sentence, pieces) else [sentence]


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} or {items[-1]}"


def _as_sentence(piece: str) -> str:
    piece = piece.strip()
    return piece[:1].upper() + piece[1:].rstrip(".,;") + "."


def _same_labels(sentence: str, pieces: Sequence[str]) -> bool:
    return not label_changes(sentence, " ".join(pieces))
