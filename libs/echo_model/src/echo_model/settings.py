"""What a caller may ask of a generation, and how a checkpoint's own settings fill the gaps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from echo_model.errors import CheckpointError, SettingsError
from echo_model.guard_settings import GuardSettings

if TYPE_CHECKING:
    from echo_model.prompt import Language
    from echo_model.unmasking import DecodingRules, RemaskingStrategy

_DEFAULTS: dict[str, Any] = {
    "block_length": 8,
    "gen_length": 512,
    "denoising_steps": 1,
    "remasking_strategy": "low_confidence_dynamic",
    "confidence_threshold": 0.85,
    "entropy_bound": 0.35,
}


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of one request; None means "as the checkpoint's generation_config.json says".

    `block_length`, `gen_length` in tokens; `denoising_steps` forward passes a block at most; `confidence_threshold`
    for the dynamic strategy; `entropy_bound` in nats. `instruction` replaces the question put to the model. `guards`:
    see `GuardSettings`.
    """

    block_length: int | None = None
    gen_length: int | None = None
    denoising_steps: int | None = None
    remasking_strategy: RemaskingStrategy | None = None
    confidence_threshold: float | None = None
    entropy_bound: float | None = None
    fused: bool = True
    language: Language = "en"
    instruction: str | None = None
    guards: GuardSettings | None = None

    def guards_for(self, generation_config: Mapping[str, Any]) -> GuardSettings:
        """The guard rails of this request: its own, else the checkpoint's (`guards`).

        A checkpoint that says nothing is decoded as the method says, without gate and second attempts; checks that
        only raise flags are on. Raises CheckpointError.
        """
        if self.guards is not None:
            return self.guards
        given = generation_config.get("guards", {"gate": None, "redenoise": False})
        try:
            return GuardSettings(**given)
        except (TypeError, SettingsError) as error:
            raise CheckpointError(f"generation_config.json: guards cannot be used: {error}") from error

    def rules(self, generation_config: Mapping[str, Any]) -> DecodingRules:
        """The decoding rules of this request on that checkpoint. Raises SettingsError or CheckpointError."""
        from echo_model.unmasking import DecodingRules  # torch is loaded only when something is decoded

        if self.language not in ("en", "zh"):
            raise SettingsError(f"language {self.language!r} is unknown; allowed: en, zh")
        values: dict[str, Any] = {}
        for name, default in _DEFAULTS.items():
            asked = getattr(self, name)
            values[name] = generation_config.get(name, default) if asked is None else asked
        try:
            return DecodingRules(
                mask_token_id=generation_config["mask_token_id"],
                eos_token_ids=tuple(generation_config["eos_token_ids"]),
                fused=self.fused,
                gate=self.guards_for(generation_config).gate,
                **values,
            )
        except TypeError as error:
            raise CheckpointError(f"generation_config.json has a setting of the wrong type: {error}") from error
