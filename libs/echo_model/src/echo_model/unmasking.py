"""Which tokens a denoising step fixes: the settings of decoding, and the four remasking strategies.

The strategies are those of block diffusion models of the SDAR family (arXiv 2510.06303).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from echo_model.errors import SettingsError

RemaskingStrategy = Literal["low_confidence_dynamic", "low_confidence_static", "sequential", "entropy_bounded"]


@dataclass(frozen=True)
class DecodingRules:
    """What decides the tokens. `confidence_threshold` belongs to the dynamic rule, `entropy_bound` (nats) to the last.

    `gen_length` is the largest number of tokens returned. Raises SettingsError for values out of range.
    """

    mask_token_id: int
    eos_token_ids: tuple[int, ...]
    block_length: int
    gen_length: int
    denoising_steps: int = 1
    remasking_strategy: RemaskingStrategy = "low_confidence_dynamic"
    confidence_threshold: float = 0.85
    entropy_bound: float = 0.35
    fused: bool = True

    def __post_init__(self) -> None:
        if self.block_length < 1:
            raise SettingsError(f"block_length must be at least 1, not {self.block_length}")
        if self.gen_length < 1:
            raise SettingsError(f"gen_length must be at least 1, not {self.gen_length}")
        if not 1 <= self.denoising_steps <= self.block_length:
            raise SettingsError(
                f"denoising_steps must lie between 1 and block_length {self.block_length}, not {self.denoising_steps}"
            )
        if self.remasking_strategy not in get_args(RemaskingStrategy):
            allowed = ", ".join(get_args(RemaskingStrategy))
            raise SettingsError(f"remasking_strategy {self.remasking_strategy!r} is unknown; allowed: {allowed}")
        if not 0.0 <= self.confidence_threshold <= 1.0:
            raise SettingsError(f"confidence_threshold must lie between 0 and 1, not {self.confidence_threshold}")
        if not self.eos_token_ids or self.mask_token_id in self.eos_token_ids:
            raise SettingsError("an end token is needed, and it must not be the mask token")


def read_logits(logits: torch.Tensor, mask_token_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Best token, its probability, and the entropy (nats) at every row; the mask token is never the best."""
    scores = logits if logits.dtype == torch.float64 else logits.float()
    log_probabilities = scores.log_softmax(dim=-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
    log_probabilities[:, mask_token_id] = -torch.inf
    confidence, best = log_probabilities.max(dim=-1)
    return best, confidence.exp(), entropy


def select(
    masked: torch.Tensor, confidence: torch.Tensor, entropy: torch.Tensor, rules: DecodingRules, step: int
) -> torch.Tensor:
    """Which masked positions of a block become fixed at this step; all arguments and the result have shape (block,).

    The last permitted step fixes all that is left.
    """
    if step >= rules.denoising_steps - 1:
        return masked.clone()
    quota = rules.block_length // rules.denoising_steps + (step < rules.block_length % rules.denoising_steps)
    if rules.remasking_strategy == "sequential":
        return masked & (masked.cumsum(0) <= quota)
    if rules.remasking_strategy == "entropy_bounded":
        ordered = entropy.masked_fill(~masked, torch.inf).sort(stable=True)
        within = int((ordered.values.cumsum(0) < rules.entropy_bound).sum())
        return _first(ordered.indices, max(1, within)) & masked
    scores = confidence.masked_fill(~masked, -1.0)
    if rules.remasking_strategy == "low_confidence_dynamic":
        sure = scores > rules.confidence_threshold
        if int(sure.sum()) >= quota:
            return sure
    return _first(scores.sort(stable=True, descending=True).indices, quota) & masked


def _first(order: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` positions of an order as a mask."""
    chosen = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
    chosen[order[:count]] = True
    return chosen
