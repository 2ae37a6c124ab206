"""Reports of a series of phantoms without drawing their pixels."""

from __future__ import annotations

from typing import Final

from echo_model.data.phantoms import draw_findings, stream
from echo_model.data.wording import write_report

TRAIN_SEED: Final = 1
"""Series that the demo model is trained on."""


def phantom_texts(seed: int, count: int) -> list[str]:
    """The normalised reports of the first `count` phantoms of the series `seed`."""
    return [write_report(stream(seed, index, 2), draw_findings(stream(seed, index, 0))).text for index in range(count)]
