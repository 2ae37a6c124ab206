"""Which tokens a denoising step fixes: the settings of decoding, the four remasking strategies, and the gate.

The strategies are those of block diffusion models of the SDAR family (arXiv 2510.06303).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.nn import functional

from echo_model.errors import SettingsError

RemaskingStrategy = Literal["low_confidence_dynamic", "low_confidence_static", "sequential", "entropy_bounded"]
LOOK_BACK = 2
"""How far apart two equal tokens raise the gate's doubt."""
STRATEGIES: tuple[RemaskingStrategy, ...] = get_args(RemaskingStrategy)


@dataclass(frozen=True)
class DecodingRules:
    """What decides the tokens. `confidence_threshold` belongs to the dynamic rule, `entropy_bound` (nats) to the last.

    `gen_length` is the largest number of tokens returned. With a `gate` (probability), a block that would be finished
    with a token less sure than that, or with one that repeats a token just before it, keeps its other tokens and is
    denoised once more, beyond `denoising_steps`.
    Raises SettingsError for values out of range.
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
    gate: float | None = None

    def __post_init__(self) -> None:
        if self.block_length < 1:
            raise SettingsError(f"block_length must be at least 1, not {self.block_length}")
        if self.gen_length < 1:
            raise SettingsError(f"gen_length must be at least 1, not {self.gen_length}")
        if not 1 <= self.denoising_steps <= self.block_length:
            raise SettingsError(
                f"denoising_steps must lie between 1 and block_length {self.block_length}, not {self.denoising_steps}"
            )
        if self.remasking_strategy not in STRATEGIES:
            allowed = ", ".join(STRATEGIES)
            raise SettingsError(f"remasking_strategy {self.remasking_strategy!r} is unknown; allowed: {allowed}")
        if not 0.0 <= self.confidence_threshold <= 1.0:
            raise SettingsError(f"confidence_threshold must lie between 0 and 1, not {self.confidence_threshold}")
        if self.gate is not None and not 0.0 <= self.gate <= 1.0:
            raise SettingsError(f"gate must lie between 0 and 1, not {self.gate}")
        if not self.eos_token_ids or self.mask_token_id in self.eos_token_ids:
            raise SettingsError("an end token is needed, and it must not be the mask token")


@dataclass(frozen=True)
class RowRules:
    """The rules of n blocks that are denoised together, as tensors (n,); a `gate` of 0 or less is none."""

    strategy: torch.Tensor
    steps: torch.Tensor
    threshold: torch.Tensor
    bound: torch.Tensor
    gate: torch.Tensor

    def put(self, row: int, rules: DecodingRules) -> None:
        """Set one row."""
        for name, value in vars(self.of([rules])).items():
            getattr(self, name)[row] = value[0]

    def first(self, count: int) -> RowRules:
        """The first rows, as views."""
        return RowRules(**{name: value[:count] for name, value in vars(self).items()})

    def to(self, device: torch.device) -> RowRules:
        """The same on a device."""
        return RowRules(**{name: value.to(device) for name, value in vars(self).items()})

    def where(self, rows: torch.Tensor, others: RowRules) -> RowRules:
        """These where `rows` (n,) is true, the others elsewhere."""
        return RowRules(**{name: torch.where(rows, value, getattr(others, name)) for name, value in vars(self).items()})

    @classmethod
    def of(cls, rules: Sequence[DecodingRules]) -> RowRules:
        """On the CPU, one row for each."""
        return cls(
            strategy=torch.tensor([STRATEGIES.index(rule.remasking_strategy) for rule in rules]),
            steps=torch.tensor([rule.denoising_steps for rule in rules]),
            threshold=torch.tensor([rule.confidence_threshold for rule in rules]),
            bound=torch.tensor([rule.entropy_bound for rule in rules]),
            gate=torch.tensor([-1.0 if rule.gate is None else rule.gate for rule in rules]),
        )


def read_logits(
    logits: torch.Tensor, mask_token_id: int, *, entropy: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Best token, its probability, and the entropy (nats; zeros unless asked for) at every place (..., vocabulary).

    The mask token is never the best, though its probability counts in the others' denominators. Writes into `logits`.
    """
    scores = logits if logits.dtype == torch.float64 else logits.float()
    if entropy:
        log_probabilities = scores.log_softmax(dim=-1)
        spread = -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
        log_probabilities[..., mask_token_id] = -torch.inf
        confidence, best = log_probabilities.max(dim=-1)
        return best, confidence.exp(), spread
    total = scores.logsumexp(dim=-1)
    scores[..., mask_token_id] = -torch.inf
    score, best = scores.max(dim=-1)
    return best, (score - total).exp(), torch.zeros_like(total)


def select(
    masked: torch.Tensor,
    ends: torch.Tensor,
    confidence: torch.Tensor,
    entropy: torch.Tensor,
    rules: RowRules,
    step: torch.Tensor,
    strategies: Sequence[RemaskingStrategy] = STRATEGIES,
    *,
    gated: bool = True,
    said: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which masked places become fixed at this step.

    `masked`, `ends` (the best or fixed token ends the answer), `confidence`, `entropy`: (n, block). `step` (n,) counts
    from 0 in each block. `strategies` and `gated` name what occurs among the rows, to leave the rest out. The last
    permitted step fixes all that is left, unless the gate asks for one more. `said` (n, LOOK_BACK + block): the best or
    fixed tokens of the block behind those before it, -1 for what is no token of the answer; without it the gate does
    not look for repeats.
    """
    last = step >= rules.steps - 1
    chosen = masked
    if strategies:
        size = masked.shape[1]
        quota = (size // rules.steps + (step < size % rules.steps)).unsqueeze(1)
        chosen = torch.zeros_like(masked)
        for name in strategies:
            rows = rules.strategy == STRATEGIES.index(name)
            chosen = torch.where(rows.unsqueeze(1), _chosen_by(name, masked, confidence, entropy, rules, quota), chosen)
        chosen = torch.where(last.unsqueeze(1), masked, chosen & masked)
    if gated:
        unsure = masked & (confidence < rules.gate.unsqueeze(1))
        told = ends.cumsum(1) - ends.long() == 0  # what follows the end of the answer is cut off and raises no doubt
        if said is not None:
            heard = torch.cat([said[:, :LOOK_BACK], said[:, LOOK_BACK:].masked_fill(~told, -1)], dim=1)
            unsure = unsure | (told & (rules.gate.unsqueeze(1) > 0) & _repeats(heard, masked, confidence))
        doubtful = (step == rules.steps - 1) & (unsure & told).any(1)
        surest = _rank((confidence - unsure.to(confidence.dtype)).masked_fill(~masked, -2.0)) == 0
        chosen = torch.where(doubtful.unsqueeze(1), masked & (~unsure | surest), chosen)
    return chosen


def _repeats(said: torch.Tensor, masked: torch.Tensor, confidence: torch.Tensor) -> torch.Tensor:
    """Masked places (n, block) whose token stands at most LOOK_BACK places away as well, and is surer there.

    Tokens that are guessed at once do not know of each other, and two neighbours often guess the same one, each of
    them sure of it.
    """
    sure = functional.pad(confidence.masked_fill(~masked, 2.0), (LOOK_BACK, 0), value=2.0)
    doubt = torch.zeros_like(said, dtype=torch.bool)
    for distance in range(1, LOOK_BACK + 1):
        same = said[:, distance:] == said[:, :-distance]
        first = same & (sure[:, :-distance] < sure[:, distance:])
        doubt[:, distance:] |= same & ~first
        doubt[:, :-distance] |= first
    return masked & doubt[:, LOOK_BACK:]


def _chosen_by(
    name: RemaskingStrategy,
    masked: torch.Tensor,
    confidence: torch.Tensor,
    entropy: torch.Tensor,
    rules: RowRules,
    quota: torch.Tensor,
) -> torch.Tensor:
    if name == "sequential":
        return masked.cumsum(1) <= quota
    if name == "entropy_bounded":
        spread = entropy.masked_fill(~masked, torch.inf)
        within = (spread.sort(dim=1, stable=True).values.cumsum(1) < rules.bound.unsqueeze(1)).sum(1, keepdim=True)
        return _rank(-spread) < within.clamp(min=1)
    scores = confidence.masked_fill(~masked, -1.0)
    surest = _rank(scores) < quota
    if name == "low_confidence_static":
        return surest
    sure = scores > rules.threshold.unsqueeze(1)
    return torch.where(sure.sum(1, keepdim=True) >= quota, sure, surest)


def _rank(scores: torch.Tensor) -> torch.Tensor:
    """Place of every score in its row's descending order; ties go to the left one."""
    return scores.sort(dim=1, stable=True, descending=True).indices.argsort(dim=1)
