"""PhantomCXR: synthetic frontal radiographs with known findings and reports. No patient stands behind any of them.

``generate_phantom(seed, index)`` gives the same pixels, labels and texts on every machine. Findings, pixels and wording
are drawn from three separate streams, so a change of one leaves the other two as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from echo_model.data.anatomy import SIDES, Anatomy, draw_anatomy, paint_chest
from echo_model.data.drawing import Canvas, blur3, coarse_noise, draw_polyline
from echo_model.data.labels import BILATERAL, DENSE_LABELS, FINDINGS, SIDED, Finding, Side, Zone
from echo_model.data.pathology import PAINTERS
from echo_model.data.wording import Report, write_report

NATIVE_SIZE: Final = 224
"""Height and width of a phantom in pixels."""

PREVALENCE: Final[dict[str, float]] = {
    "cardiomegaly": 0.24,
    "pleural_effusion": 0.26,
    "pneumothorax": 0.17,
    "consolidation": 0.22,
    "pulmonary_edema": 0.14,
    "nodule": 0.20,
    "atelectasis": 0.18,
    "rib_fracture": 0.18,
    "pacemaker": 0.15,
    "endotracheal_tube": 0.15,
    "central_line": 0.18,
}
NORMAL_SHARE: Final = 0.12


@dataclass(frozen=True)
class Phantom:
    """One synthetic study.

    ``image``: uint8 (NATIVE_SIZE, NATIVE_SIZE), bright = dense. ``masks``: for each name of ``DENSE_LABELS`` that
    holds, the bool region (NATIVE_SIZE, NATIVE_SIZE) in which it can be seen. ``report``: normalised, with findings and
    impression; ``raw_report``: the same study told by exception.
    """

    seed: int
    index: int
    image: npt.NDArray[np.uint8]
    findings: dict[str, Finding]
    masks: dict[str, npt.NDArray[np.bool_]]
    wording: Report

    @property
    def report(self) -> str:
        """The normalised report."""
        return self.wording.text

    @property
    def raw_report(self) -> str:
        """The report by exception."""
        return self.wording.raw


def stream(seed: int, index: int, purpose: int) -> np.random.Generator:
    """Random numbers for one purpose of one phantom (0 findings, 1 pixels, 2 wording, 100 and more findings' pixels).

    The lateral view has 3, and 200 and more.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index, purpose])))


def draw_findings(rng: np.random.Generator) -> dict[str, Finding]:
    """Draw which findings a phantom has, on which side, where and how large."""
    r = rng.random((len(FINDINGS), 5))
    normal = rng.random() < NORMAL_SHARE
    found: dict[str, Finding] = {}
    for name, (p, s, b, z, g) in zip(FINDINGS, r, strict=True):
        if normal or p >= PREVALENCE[name]:
            found[name] = Finding(present=False)
            continue
        side: Side = "none"
        if name in SIDED:
            side = "right" if s < 0.5 else "left"
            if name in BILATERAL and b < 0.18:
                side = "both"
        zone = "upper" if z < 0.5 else "lower"
        found[name] = Finding(
            present=True,
            side=side,
            zone=cast(Zone, zone if name in ("consolidation", "nodule") else "none"),
            size=("small" if g < 0.5 else "large") if name == "pleural_effusion" else "none",
        )
    # Air above a large collection would hide its meniscus: such a pair is told and drawn with a small one.
    effusion, air = found["pleural_effusion"], found["pneumothorax"]
    if air.present and effusion.present and effusion.side in (air.side, "both"):
        found["pleural_effusion"] = Finding(True, effusion.side, size="small")
    return found


def film(rng: np.random.Generator, canvas: Canvas) -> npt.NDArray[np.uint8]:
    """Exposure, contrast, unsharpness and grain of one film; to uint8."""
    size = canvas.shape[0]
    if rng.random() < 0.6:
        canvas = blur3(canvas)
    # The shoulder of the film's curve: dense parts are compressed, never clipped flat.
    over = np.clip(canvas - np.float32(0.66), 0, 2)
    canvas = canvas - over + over / (1 + np.float32(1.6) * over)
    canvas = canvas + np.float32(0.012) * coarse_noise(rng, 4, size)
    grain = (rng.random((size, size)) + rng.random((size, size)) - 1).astype(np.float32)
    canvas = canvas + np.float32(0.012 + 0.022 * rng.random()) * grain
    contrast = np.float32(0.90 + 0.28 * rng.random())
    level = np.float32(0.5 + 0.06 * (2 * rng.random() - 1))
    bent = np.clip((canvas - np.float32(0.45)) * contrast + level, 0, 1)
    toe = np.float32(0.25 * (2 * rng.random() - 1))
    bent = bent + toe * bent * (1 - bent)
    return np.asarray(np.clip(bent * 255 + np.float32(0.5), 0, 255), dtype=np.uint8)


def draw_body(rng: np.random.Generator, found: dict[str, Finding]) -> Anatomy:
    """Draw the measures of a chest whose heart is as large as the findings say."""
    ratio = (0.59 + 0.10 * rng.random()) if found["cardiomegaly"].present else (0.40 + 0.09 * rng.random())
    return draw_anatomy(rng, NATIVE_SIZE, ratio)


def shown(found: dict[str, Finding]) -> Iterator[tuple[int, str, str]]:
    """What is to be painted, in order: number of its random stream, name of the finding, side."""
    for number, name in enumerate(PAINTERS):
        finding = found[name]
        if not finding.present:
            continue
        for place, (side, _) in enumerate(SIDES):
            if finding.side in (side, "both") or (finding.side == "none" and place == 0):
                yield 2 * number + place, name, side


def labels_of(name: str, side: str, finding: Finding) -> list[str]:
    """Names of ``DENSE_LABELS`` that a finding on one side carries."""
    base = name if finding.side == "none" else f"{name}.{side}"
    return [label for label in (base, f"{base}.{finding.zone}", f"{base}.{finding.size}") if label in DENSE_LABELS]


def generate_phantom(seed: int, index: int, findings: dict[str, Finding] | None = None) -> Phantom:
    """Make phantom ``index`` of the series ``seed``; ``findings`` replaces the drawn ones (all names are needed)."""
    found = draw_findings(stream(seed, index, 0)) if findings is None else findings
    rng = stream(seed, index, 1)
    anatomy = draw_body(rng, found)
    canvas, lungs = paint_chest(rng, anatomy)
    masks: dict[str, npt.NDArray[np.bool_]] = {}
    if found["cardiomegaly"].present:
        cx = np.float32(anatomy.midline + 0.03)
        heart = (np.abs(anatomy.x - cx) < anatomy.heart_half_width) & (np.abs(anatomy.y - anatomy.heart_y) < 0.12)
        masks["cardiomegaly"] = heart
    for number, name, side in shown(found):
        finding = found[name]
        region = PAINTERS[name](stream(seed, index, 100 + number), anatomy, canvas, lungs, side, finding) > 0.2
        masks |= dict.fromkeys(labels_of(name, side, finding), region)
    side_marker(canvas)
    image = film(rng, canvas)
    return Phantom(seed, index, image, found, masks, write_report(stream(seed, index, 2), found))


def side_marker(canvas: Canvas) -> None:
    """The letter L at the patient's left, as technicians place it."""
    draw_polyline(canvas, [(0.945, 0.05), (0.945, 0.095), (0.97, 0.095)], 0.006, 0.6)
