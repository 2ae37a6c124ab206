"""The losses of the stages on rows: sums over a row's tokens, divided by counts over the whole batch.

So the losses of the rows of a batch add up to the loss of the batch, whoever computes them and in whatever order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from echo_model.training.dcd import Distillation, divergence, reverse_divergence
from echo_model.training.rollout import Trajectories, log_probabilities
from echo_model.training.rows import Row
from echo_model.training.text_stages import Loss


def token_loss(logits: torch.Tensor, row: Row, whole: float) -> Loss:
    """Weighted cross-entropy of the row's tokens (stages AR and RAD); ``whole``: weight of all tokens of the batch."""
    truth = row.truth.to(logits.device)
    losses = functional.cross_entropy(logits.float(), truth, reduction="none")
    hit = (logits.detach().argmax(dim=-1) == truth).float().mean()
    return (losses * row.weights.to(losses.device)).sum() / whole, {"hit": float(hit)}


@dataclass(frozen=True)
class Counts:
    """Over the answers of a batch: weights of the fixed tokens, end tokens, and number of fixed tokens."""

    weights: float
    ends: float
    fixed: float

    @classmethod
    def of(cls, paths: Trajectories, eos: int, *, weighted: bool) -> Counts:
        """Of given answers; every answer has an end."""
        fixed = paths.step > 0
        ends = paths.open & (paths.ids == eos)
        weights = paths.step.sum() if weighted else fixed.sum()
        return cls(float(weights), float(ends.sum()), float(fixed.sum()))


def distillation_loss(
    logits: torch.Tensor, row: Row, paths: list[Trajectories], eos: int, mask: int, options: Distillation, whole: Counts
) -> Loss:
    """The loss of `dcd.distil_loss` on a row: divergence, end tokens and, if wanted, cross-entropy.

    ``paths``: the row's answers, a trajectory of one answer (1, R) each.
    """
    device = logits.device
    log = log_probabilities(logits, mask)
    truth, steps = row.truth.to(device), row.weights.to(device)
    fixed, ends = steps > 0, truth == eos
    told = [path.step[0] > 0 for path in paths]
    top_ids = torch.cat([path.top_ids[0][at] for path, at in zip(paths, told, strict=True)]).to(device)
    top_log = torch.cat([path.top_log[0][at] for path, at in zip(paths, told, strict=True)]).to(device)
    measure = reverse_divergence if options.reverse else divergence
    apart = measure(top_ids, top_log, log[fixed])
    weights = steps[fixed] if options.weighted else torch.ones_like(steps[fixed])
    kl = (apart * weights).sum() / whole.weights
    end = -log[ends][:, eos].sum() / whole.ends
    ce = functional.nll_loss(log[fixed], truth[fixed], reduction="sum") / whole.fixed
    agree = (log[fixed].detach().argmax(dim=-1) == truth[fixed]).float().mean()
    return kl + options.eos_weight * end + options.ce_weight * ce, {"agree": float(agree)}
