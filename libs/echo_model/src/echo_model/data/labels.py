"""Names of the findings that the phantoms show and the extractor reads, and the labels the vision tower learns first.

Sides are the patient's: on a frontal radiograph the patient's right is on the left of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Side = Literal["left", "right", "both", "none"]
Zone = Literal["upper", "lower", "none"]
Size = Literal["small", "large", "none"]

FINDINGS: Final[tuple[str, ...]] = (
    "cardiomegaly",
    "pleural_effusion",
    "pneumothorax",
    "consolidation",
    "pulmonary_edema",
    "nodule",
    "atelectasis",
    "rib_fracture",
    "pacemaker",
    "endotracheal_tube",
    "central_line",
)

#: Findings of which a side is stated. The others are in the midline or on both sides by nature.
SIDED: Final[tuple[str, ...]] = (
    "pleural_effusion",
    "pneumothorax",
    "consolidation",
    "nodule",
    "atelectasis",
    "rib_fracture",
    "pacemaker",
    "central_line",
)

#: Findings that may be on both sides in one phantom.
BILATERAL: Final[tuple[str, ...]] = ("pleural_effusion", "consolidation", "atelectasis")


@dataclass(frozen=True, slots=True)
class Finding:
    """State of one finding in one phantom.

    ``zone`` is stated for consolidation, nodule and atelectasis, ``size`` for effusions; ``"none"`` elsewhere.
    """

    present: bool
    side: Side = "none"
    zone: Zone = "none"
    size: Size = "none"


def dense_label_names() -> tuple[str, ...]:
    """Names of the per-region labels that the vision tower is trained on before it ever sees text.

    ``finding`` or ``finding.side``, then what the reports state beyond the side (zone, size).
    """
    names: list[str] = []
    for finding in FINDINGS:
        names.extend([f"{finding}.right", f"{finding}.left"] if finding in SIDED else [finding])
    names += ["consolidation.right.upper", "consolidation.left.upper", "nodule.right.upper", "nodule.left.upper"]
    names += ["pleural_effusion.right.large", "pleural_effusion.left.large"]
    return tuple(names)


DENSE_LABELS: Final[tuple[str, ...]] = dense_label_names()
