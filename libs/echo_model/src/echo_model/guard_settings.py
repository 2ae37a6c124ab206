"""Which guard rails are on. No torch, so that a service's settings can hold it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Final

from echo_model.errors import SettingsError

DEFAULT_GATE: Final = 0.6
"""Confidence that the gate asks for. Lower ones miss doubtful tokens, higher ones give up too many at once."""


@dataclass(frozen=True)
class GuardSettings:
    """Every check can be switched off by itself; a check whose file the checkpoint lacks is off anyway.

    `gate`: a block with a token less sure than it, or with one that repeats its neighbour, keeps its other tokens and
    gets a second step; None for no such step. `redenoise`: a block with garble in it is decoded again with more steps.
    `garble`: doubled pieces and loops are looked for. `lexicon`: words and word orders that the training reports never
    had. `contradiction`: findings against impression. `domain`: the image against the training images. Raises
    SettingsError.
    """

    gate: float | None = DEFAULT_GATE
    redenoise: bool = True
    garble: bool = True
    lexicon: bool = True
    contradiction: bool = True
    domain: bool = True

    def __post_init__(self) -> None:
        if self.gate is not None and (
            isinstance(self.gate, bool)
            or not isinstance(self.gate, int | float)
            or not math.isfinite(self.gate)
            or not 0.0 < self.gate <= 1.0
        ):
            raise SettingsError(f"gate must be above 0 and at most 1, or None for none; it is {self.gate!r}")
        for field in fields(self):
            if field.name != "gate" and not isinstance(getattr(self, field.name), bool):
                raise SettingsError(f"{field.name} must be true or false, not {getattr(self, field.name)!r}")

    @classmethod
    def off(cls) -> GuardSettings:
        """No check and no second step: what the decoder alone makes of the image."""
        return cls(gate=None, redenoise=False, garble=False, lexicon=False, contradiction=False, domain=False)
