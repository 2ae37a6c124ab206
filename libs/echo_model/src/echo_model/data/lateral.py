"""The left lateral view of a phantom: the same patient, findings, sizes and heights, seen from the side.

It draws from random streams of its own (3, and 200 and more), so that frontal views stay as they are whether it is made
or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from echo_model.data.drawing import draw_polyline
from echo_model.data.lateral_anatomy import draw_lateral_anatomy, paint_lateral_chest
from echo_model.data.lateral_findings import LATERAL_PAINTERS
from echo_model.data.phantoms import Phantom, draw_body, film, labels_of, shown, stream


@dataclass(frozen=True)
class LateralView:
    """``image``: uint8 (NATIVE_SIZE, NATIVE_SIZE), bright = dense, the patient facing the left edge.

    ``masks``: as those of the phantom, on this image.
    """

    image: npt.NDArray[np.uint8]
    masks: dict[str, npt.NDArray[np.bool_]]


def lateral_view(phantom: Phantom) -> LateralView:
    """Draw the lateral view that belongs to a frontal phantom."""
    seed, index, found = phantom.seed, phantom.index, phantom.findings
    rng = stream(seed, index, 3)
    anatomy = draw_lateral_anatomy(rng, draw_body(stream(seed, index, 1), found))
    canvas, lungs = paint_lateral_chest(rng, anatomy)
    masks: dict[str, npt.NDArray[np.bool_]] = {}
    if found["cardiomegaly"].present:
        masks["cardiomegaly"] = anatomy.heart() > 0.5
    for number, name, side in shown(found):
        shared, own = (stream(seed, index, first + number) for first in (100, 200))
        region = LATERAL_PAINTERS[name](shared, own, anatomy, canvas, lungs, side, found[name]) > 0.2
        masks |= dict.fromkeys(labels_of(name, side, found[name]), region)
    # The letters LL, the left side at the film, behind the patient where no anatomy lies.
    for x in (0.90, 0.945):
        draw_polyline(canvas, [(x, 0.05), (x, 0.095), (x + 0.025, 0.095)], 0.006, 0.6)
    return LateralView(film(rng, canvas), masks)
