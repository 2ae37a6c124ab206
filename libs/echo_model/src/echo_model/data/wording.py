"""Report texts of the phantoms: normalised reports in a fixed anatomical order, and reports by exception.

Wordings of a statement are drawn unevenly (the first one most often), as people write: a one-step decoder cannot agree
with itself about near-ties. Now and then a region gets a remark more. The sentences stand in ``wording_bank`` and
``wording_remarks``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from echo_model.data.labels import Finding
from echo_model.data.wording_bank import CONCLUSIONS, NORMAL, STATEMENTS, Wordings
from echo_model.data.wording_remarks import BEDSIDE, CLOSINGS, OPENINGS, REMARKS, STANDING

WEIGHTS: Final = (64, 16, 8, 5, 3, 2, 2)
"""How often the first, second, ... wording is drawn; the rest of a list shares the last weight."""

REMARK_RATE: Final = 0.05
"""How often a region is given a remark more."""


@dataclass(frozen=True, slots=True)
class Report:
    """Both texts of a phantom and where the image decides.

    ``spans``: character ranges in ``text`` of the statements that depend on the image (a stated region that never
    changes, such as the thorax, is left out).
    """

    text: str
    raw: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence of the findings section; ``positive``: it tells of something abnormal or of a device."""

    text: str
    depends: bool
    positive: bool


def _choose(rng: np.random.Generator, wordings: Wordings) -> str:
    weights = [WEIGHTS[min(place, len(WEIGHTS) - 1)] for place in range(len(wordings))]
    draw = float(rng.random()) * sum(weights)
    for wording, weight in zip(wordings, weights, strict=True):
        draw -= weight
        if draw < 0:
            return wording
    return wordings[0]


def fill(wording: str, finding: Finding) -> str:
    """Put side, zone and size of a finding into a wording."""
    side = {"both": "bilateral"}.get(finding.side, finding.side)
    sided = side if finding.side == "both" else f"{side}-sided"
    amount = {"small": "minor", "large": "extensive"}.get(finding.size, "")
    filled = wording.format(
        side=side,
        Side=side.capitalize(),
        sided=sided,
        Sided=sided.capitalize(),
        zone=finding.zone,
        size=finding.size,
        Size=finding.size.capitalize(),
        amount=amount,
        Amount=amount.capitalize(),
    )
    return filled.replace("An minor", "A minor")


def statements(rng: np.random.Generator, findings: dict[str, Finding]) -> list[Line]:
    """Sentences of the findings section in anatomical order."""
    lines: list[Line] = []

    def say(key: str, finding: Finding | None = None, *, depends: bool = True) -> None:
        wording = _choose(rng, STATEMENTS[key])
        lines.append(Line(wording if finding is None else fill(wording, finding), depends, finding is not None))

    def sided(name: str, key: str) -> None:
        finding = findings[name]
        say(f"{key}_both" if finding.side == "both" else key, finding)

    def either(name: str, there: str, absent: str) -> None:
        if has[name]:
            say(there, findings[name])
        else:
            say(absent)

    def remark(region: str) -> None:
        draw, which = rng.random(2)
        if draw < REMARK_RATE:
            lines.append(Line(REMARKS[region][int(which * len(REMARKS[region]))], depends=False, positive=False))

    has = {name: finding.present for name, finding in findings.items()}
    say("thorax", depends=False)
    remark("thorax")
    say("mediastinum", depends=False)
    remark("mediastinum")
    opacities = [name for name in ("consolidation", "nodule", "atelectasis") if has[name]]
    for name in opacities:
        sided(name, name)
    if has["pulmonary_edema"]:
        say("edema", findings["pulmonary_edema"])
    elif not opacities:
        say("lungs_clear")
    remark("lungs")
    either("pneumothorax", "pneumothorax", "no_pneumothorax")
    either("cardiomegaly", "cardiomegaly", "heart_normal")
    remark("heart")
    either("pulmonary_edema", "hila_edema", "hila")
    remark("hila")
    if has["pleural_effusion"]:
        sided("pleural_effusion", "effusion")
    else:
        say("angles_clear")
    remark("diaphragm")
    either("rib_fracture", "rib_fracture", "bones_intact")
    remark("bones")
    devices = [name for name in ("endotracheal_tube", "central_line", "pacemaker") if has[name]]
    for name in devices:
        say(name, findings[name])
    if not devices:
        say("no_devices")
    remark("devices")
    return lines


def _conclusion(rng: np.random.Generator, name: str, finding: Finding) -> str:
    return fill(_choose(rng, CONCLUSIONS[f"{name}_both" if finding.side == "both" else name]), finding)


def write_report(rng: np.random.Generator, findings: dict[str, Finding]) -> Report:
    """Write the normalised report and the one by exception for a set of findings."""
    lines = statements(rng, findings)
    conclusions = [
        _conclusion(rng, name, finding) for name, finding in findings.items() if finding.present and name in CONCLUSIONS
    ]
    if not conclusions:
        conclusions = [_choose(rng, NORMAL)]
    text, spans = "Findings:", []
    for line in lines:
        if line.depends:
            spans.append((len(text), len(text) + 1 + len(line.text)))
        text += " " + line.text
    text += " Impression:"
    for conclusion in conclusions:
        spans.append((len(text), len(text) + 1 + len(conclusion)))
        text += " " + conclusion
    exceptions = [line.text for line in lines if line.positive]
    opening = _choose(rng, OPENINGS)
    if findings["endotracheal_tube"].present and opening in STANDING:
        opening = BEDSIDE
    told = [*exceptions, _choose(rng, CLOSINGS)] if exceptions else [_choose(rng, NORMAL)]
    return Report(text, " ".join(part for part in (opening, *told) if part), tuple(spans))
