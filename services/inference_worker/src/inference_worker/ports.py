"""What the worker needs from the model and from whatever decodes pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Protocol

import numpy as np
import numpy.typing as npt

from inference_worker.domain import Draft

GreyImage = npt.NDArray[np.uint8]
"""Rows x columns; 0 is black as a reader sees it on a screen (air dark, bone bright)."""


class ReportModel(Protocol):
    """The one model of the process. Thread-safe."""

    @property
    def model_id(self) -> str:
        """Name of the checkpoint."""
        ...

    @property
    def model_version(self) -> str:
        """Which weights: the start of their SHA-256."""
        ...

    def generate(self, images: Sequence[GreyImage], timeout_s: float) -> Draft:
        """The draft on the images of one study, frontal first.

        Raises `Fault` with `deadline_exceeded` or `image_unusable`.
        """
        ...

    def stalled_s(self) -> float:
        """Seconds since the last step while a request is in the model; 0 when there is none."""
        ...


class PixelDecoder(Protocol):
    """Makes the picture that a reader would see."""

    def decode(self, file: IO[bytes], timeout_s: float | None = None) -> GreyImage:
        """The picture; begun within `timeout_s` or not at all (`Fault` with `deadline_exceeded`). Raises `Fault`."""
        ...
