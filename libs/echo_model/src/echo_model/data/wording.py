"""Report texts of the phantoms: normalised reports in a fixed anatomical order, and reports by exception.

Wordings of a statement are drawn unevenly (the first one most often), as people write: a one-step decoder cannot agree
with itself about near-ties. Further wordings are added at the end of a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from echo_model.data.labels import Finding

#: Probability of the first, second and third wording of a statement.
WEIGHTS: Final = (0.7, 0.2, 0.1)

#: Statements by key, in braces what is filled in: side, Side (capitalised), zone, size.
STATEMENTS: Final[dict[str, tuple[str, ...]]] = {
    "thorax": ("The thorax is symmetric.", "Symmetric thorax.", "The chest wall is symmetric."),
    "mediastinum": (
        "The mediastinum is midline.",
        "The mediastinal contours are normal.",
        "Mediastinum and trachea are midline.",
    ),
    "lungs_clear": (
        "The lung fields are clear.",
        "Both lungs are clear.",
        "No focal lung opacity is seen.",
    ),
    "consolidation": (
        "There is consolidation in the {side} {zone} zone.",
        "Consolidation is seen in the {side} {zone} zone.",
        "The {side} {zone} zone shows airspace consolidation.",
    ),
    "consolidation_both": (
        "There is consolidation in both {zone} zones.",
        "Consolidation is seen in both {zone} zones.",
        "Both {zone} zones show airspace consolidation.",
    ),
    "nodule": (
        "There is a nodule in the {side} {zone} zone.",
        "A nodule is seen in the {side} {zone} zone.",
        "The {side} {zone} zone shows a round nodule.",
    ),
    "atelectasis": (
        "There is band atelectasis at the {side} base.",
        "Band atelectasis is seen at the {side} base.",
        "The {side} base shows plate atelectasis.",
    ),
    "atelectasis_both": (
        "There is band atelectasis at both bases.",
        "Band atelectasis is seen at both bases.",
        "Both bases show plate atelectasis.",
    ),
    "edema": (
        "There is perihilar pulmonary edema.",
        "Perihilar opacities indicate pulmonary edema.",
        "Pulmonary edema is present.",
    ),
    "pneumothorax": (
        "There is a {side} pneumothorax.",
        "A {side} pneumothorax is seen.",
        "The {side} lung shows a pneumothorax.",
    ),
    "no_pneumothorax": ("No pneumothorax.", "No pneumothorax is seen.", "There is no pneumothorax."),
    "heart_normal": ("The heart is normal in size.", "Normal heart size.", "The cardiac silhouette is normal."),
    "cardiomegaly": ("The heart is enlarged.", "Enlarged heart.", "The cardiac silhouette is enlarged."),
    "hila": ("The hila are normal.", "Normal hila.", "Both hila are unremarkable."),
    "hila_edema": ("The hila are indistinct.", "Indistinct hila.", "Both hila are blurred."),
    "angles_clear": (
        "The costophrenic angles are sharp.",
        "Sharp costophrenic angles.",
        "No pleural effusion.",
    ),
    "effusion": (
        "There is a {size} {side} pleural effusion.",
        "A {size} {side} pleural effusion is seen.",
        "A {size} pleural effusion is present on the {side}.",
    ),
    "effusion_both": (
        "There are {size} bilateral pleural effusions.",
        "Bilateral {size} pleural effusions are seen.",
        "Both sides show a {size} pleural effusion.",
    ),
    "bones_intact": ("The bones are intact.", "No rib fracture.", "The ribs are intact."),
    "rib_fracture": (
        "There is a {side} rib fracture.",
        "A {side} rib fracture is seen.",
        "A rib is fractured on the {side}.",
    ),
    "no_devices": ("No devices.", "No devices are seen.", "There are no tubes or lines."),
    "endotracheal_tube": (
        "An endotracheal tube is in place.",
        "An endotracheal tube is seen.",
        "The endotracheal tube ends above the carina.",
    ),
    "central_line": (
        "A {side} central line is in place.",
        "A {side} central venous line is seen.",
        "A central line enters from the {side}.",
    ),
    "pacemaker": (
        "A {side} pacemaker is in place.",
        "A {side} chest wall pacemaker is seen.",
        "A pacemaker lies on the {side}.",
    ),
}

#: Lines of the impression.
CONCLUSIONS: Final[dict[str, tuple[str, ...]]] = {
    "cardiomegaly": ("Cardiomegaly.",),
    "pleural_effusion": ("{Side} pleural effusion.",),
    "pneumothorax": ("{Side} pneumothorax.",),
    "consolidation": ("{Side} consolidation.",),
    "pulmonary_edema": ("Pulmonary edema.",),
    "nodule": ("{Side} lung nodule.",),
    "atelectasis": ("{Side} atelectasis.",),
    "rib_fracture": ("{Side} rib fracture.",),
}
NORMAL: Final = ("No acute abnormality.", "Normal chest radiograph.", "No acute cardiopulmonary disease.")


@dataclass(frozen=True, slots=True)
class Report:
    """Both texts of a phantom and where the image decides.

    ``spans``: character ranges in ``text`` of the statements that depend on the image (a stated region that never
    changes, such as the thorax, is left out).
    """

    text: str
    raw: str
    spans: tuple[tuple[int, int], ...]


def _choose(rng: np.random.Generator, wordings: tuple[str, ...]) -> str:
    draw, total = float(rng.random()), 0.0
    for wording, weight in zip(wordings, WEIGHTS, strict=False):
        total += weight
        if draw < total:
            return wording
    return wordings[0]


def _fill(wording: str, finding: Finding) -> str:
    side = {"both": "bilateral"}.get(finding.side, finding.side)
    return wording.format(side=side, Side=side.capitalize(), zone=finding.zone, size=finding.size)


def statements(rng: np.random.Generator, findings: dict[str, Finding]) -> list[tuple[str, bool, bool]]:
    """Statements of the findings section in anatomical order: (text, depends on the image, is positive)."""
    lines: list[tuple[str, bool, bool]] = []

    def say(key: str, finding: Finding | None = None, *, depends: bool = True) -> None:
        wording = _choose(rng, STATEMENTS[key])
        lines.append((wording if finding is None else _fill(wording, finding), depends, finding is not None))

    def sided(name: str, key: str) -> None:
        finding = findings[name]
        say(f"{key}_both" if finding.side == "both" else key, finding)

    has = {name: finding.present for name, finding in findings.items()}
    say("thorax", depends=False)
    say("mediastinum", depends=False)
    opacities = [name for name in ("consolidation", "nodule", "atelectasis") if has[name]]
    for name in opacities:
        sided(name, name)
    if has["pulmonary_edema"]:
        say("edema", findings["pulmonary_edema"])
    elif not opacities:
        say("lungs_clear")
    if has["pneumothorax"]:
        say("pneumothorax", findings["pneumothorax"])
    else:
        say("no_pneumothorax")
    if has["cardiomegaly"]:
        say("cardiomegaly", findings["cardiomegaly"])
    else:
        say("heart_normal")
    if has["pulmonary_edema"]:
        say("hila_edema", findings["pulmonary_edema"])
    else:
        say("hila")
    if has["pleural_effusion"]:
        sided("pleural_effusion", "effusion")
    else:
        say("angles_clear")
    if has["rib_fracture"]:
        say("rib_fracture", findings["rib_fracture"])
    else:
        say("bones_intact")
    devices = [name for name in ("endotracheal_tube", "central_line", "pacemaker") if has[name]]
    for name in devices:
        say(name, findings[name])
    if not devices:
        say("no_devices")
    return lines


def write_report(rng: np.random.Generator, findings: dict[str, Finding]) -> Report:
    """Write the normalised report and the one by exception for a set of findings."""
    lines = statements(rng, findings)
    conclusions = [
        _fill(_choose(rng, CONCLUSIONS[name]), findings[name]) for name in CONCLUSIONS if findings[name].present
    ]
    if not conclusions:
        conclusions = [_choose(rng, NORMAL)]
    text, spans = "Findings:", []
    for line, depends, _ in lines:
        if depends:
            spans.append((len(text), len(text) + 1 + len(line)))
        text += " " + line
    text += " Impression:"
    for line in conclusions:
        spans.append((len(text), len(text) + 1 + len(line)))
        text += " " + line
    exceptions = [line for line, _, positive in lines if positive]
    raw = " ".join(exceptions) if exceptions else _choose(rng, NORMAL)
    return Report(text, raw, tuple(spans))
