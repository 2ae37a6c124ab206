"""Three other ways to teach a block-diffusion model fewer steps, each as one loss on stored answers of its teacher.

They stand beside DCD (`dcd.distil_loss`) so that one trainer compares all of them on the same answers and budget. Each
follows its paper's objective; sampling details that a paper ties to its own model are kept simple and said here.

- `dparallel_loss` (dParallel, arXiv 2509.26488): follow the teacher's tokens, and become sure of them.
- `t3d_loss` (T3D, arXiv 2602.12262): tell the teacher's tokens from the reference model's own guesses.
- `consistency_loss` (like CD4LM): say at a noisier state what one says at the state one step further on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from echo_model.training.dcd import masked_states
from echo_model.training.rollout import Trajectories, log_probabilities
from echo_model.training.shape import Layout
from echo_model.training.text_stages import Loss


def decode_order(paths: Trajectories, block: int) -> torch.Tensor:
    """Place of every open position in the order in which its block was decoded, from 0: int64 (B, R), else `block`.

    Positions fixed in one step follow from left to right; end tokens behind the answer come last.
    """
    rows, width = paths.ids.shape
    last = paths.step.max() + 1
    late = torch.where(paths.step > 0, paths.step, last).masked_fill(~paths.open, int(last) + 1)
    key = (late * block + torch.arange(width) % block).reshape(rows, -1, block)
    place = key.argsort(dim=-1).argsort(dim=-1).reshape(rows, width)
    # fixed positions of a prompt's tail sort last, so the open ones of their block still count from 0
    return place.masked_fill(~paths.open, block)


def _log(student: Any, states: torch.Tensor, chosen: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Log-probabilities (N, V) at the chosen positions."""
    return log_probabilities(student.lm_head(states[chosen]), layout.mask)


@dataclass(frozen=True)
class DParallel:
    """`entropy_weight`: of the certainty term; `temperature` of the distribution whose entropy it lowers."""

    entropy_weight: float = 1.0
    temperature: float = 0.5


def dparallel_loss(
    student: Any,
    layout: Layout,
    features: torch.Tensor,
    paths: Trajectories,
    block: int,
    generator: torch.Generator,
    options: DParallel | None = None,
) -> Loss:
    """Cross-entropy on the teacher's tokens, plus the entropy at places that the student already gets right.

    Half of each block is masked, the other half in a second copy, so that every token is learnt once. Decoded with an
    entropy threshold (`entropy_bounded`), several tokens a step.
    """
    options = options or DParallel()
    first = paths.open & (torch.rand(paths.open.shape, generator=generator) < 0.5)
    masks = [first, paths.open & ~first]
    states = masked_states(student, layout, features, paths, block, masks)
    log = torch.cat([_log(student, state, mask, layout) for state, mask in zip(states, masks, strict=True)])
    truth = torch.cat([paths.ids[mask] for mask in masks])
    ce = functional.nll_loss(log, truth)
    right = log.detach().argmax(dim=-1) == truth
    sharp = (log[right] / options.temperature).log_softmax(dim=-1)
    # the mask token's -inf is left out before the product: behind it, its gradient would be no number
    surprise = -(sharp.exp() * sharp.masked_fill(sharp == -torch.inf, 0.0)).sum(dim=-1)
    entropy = surprise.sum() / max(1, int(right.sum()))
    figures = {"ce": float(ce.detach()), "entropy": float(entropy.detach()), "agree": float(right.float().mean())}
    return ce + options.entropy_weight * entropy, figures


@dataclass(frozen=True)
class T3D:
    """Weights of arXiv 2602.12262: `beta` sharpens the log-ratio, `alpha` and `path` weigh the second and third term.

    `segment`: tokens that the path term predicts at a time. `ratios`: shares of a block that are masked, with the odds
    of each; all-masked, the state that few-step decoding starts from, is by far the likeliest.
    """

    beta: float = 0.1
    alpha: float = 0.5
    path: float = 0.2
    segment: int = 4
    ratios: tuple[tuple[float, float], ...] = ((1.0, 0.7), (0.75, 0.1), (0.5, 0.1), (0.25, 0.1))


def t3d_loss(
    student: Any,
    reference: Any,
    layout: Layout,
    features: torch.Tensor,
    paths: Trajectories,
    block: int,
    generator: torch.Generator,
    options: T3D | None = None,
) -> Loss:
    """Direct discriminative optimisation on states of the teacher's path, and cross-entropy along that path.

    A block is masked as it stood when a drawn share of it was still open. "Real" are the teacher's tokens there,
    "fake" the reference's own likeliest ones; `reference` is a frozen copy of the student, renewed after each round.
    The path term sees the block after a drawn number of segments and predicts the next one. Decoded at about two
    tokens a pass.
    """
    options = options or T3D()
    rows, blocks = paths.ids.shape[0], paths.ids.shape[1] // block
    order = decode_order(paths, block)
    size = paths.open.reshape(rows, blocks, block).sum(dim=-1)
    shares, odds = (torch.tensor(values) for values in zip(*options.ratios, strict=True))
    drawn = shares[torch.multinomial(odds, rows * blocks, replacement=True, generator=generator)].reshape(rows, blocks)
    finished = (size - (size * drawn).ceil()).long()
    segments = -(-size // options.segment)
    begun = (torch.rand(rows, blocks, generator=generator) * segments).long() * options.segment

    def still_masked(done: torch.Tensor) -> torch.Tensor:
        return paths.open & (order >= done.repeat_interleave(block, dim=1))

    masks = [still_masked(finished), still_masked(begun)]
    states = masked_states(student, layout, features, paths, block, masks)
    real = paths.ids[masks[0]]
    with torch.no_grad():
        before = _log(
            reference, masked_states(reference, layout, features, paths, block, masks[:1])[0], masks[0], layout
        )
    fake = before.argmax(dim=-1)
    log = _log(student, states[0], masks[0], layout)

    def ratio(tokens: torch.Tensor) -> torch.Tensor:
        return options.beta * (log - before).gather(-1, tokens[:, None])[:, 0]

    told = -functional.logsigmoid(ratio(real)).mean()
    denied = -functional.logsigmoid(-ratio(fake)).mean()
    ahead = masks[1] & (order < (begun + options.segment).repeat_interleave(block, dim=1))
    path = functional.nll_loss(_log(student, states[1], ahead, layout), paths.ids[ahead])
    figures = {
        "real": float(told.detach()),
        "fake": float(denied.detach()),
        "path": float(path.detach()),
        "agree": float((log.detach().argmax(dim=-1) == real).float().mean()),
    }
    return told + options.alpha * denied + options.path * path, figures


def consistency_loss(
    student: Any,
    layout: Layout,
    features: torch.Tensor,
    paths: Trajectories,
    block: int,
    generator: torch.Generator,
) -> Loss:
    """Adjacent states of the teacher's path must lead to one answer (discrete consistency, like CD4LM).

    The student sees a block after a drawn number of steps. Where the next step fixes a token it learns that token;
    where the position stays open it learns what it says itself, without gradient, one step further on. Decoded in one
    step.
    """
    rows = paths.ids.shape[0]
    steps = paths.step.reshape(rows, -1, block).amax(dim=-1)
    done = (torch.rand(steps.shape, generator=generator) * steps).long().repeat_interleave(block, dim=1)
    late = torch.where(paths.step > 0, paths.step, paths.step.max() + 1)  # end tokens behind the answer stay open
    now = paths.open & (late > done)
    after = paths.open & (late > done + 1)
    state = masked_states(student, layout, features, paths, block, [now])[0]
    with torch.no_grad():
        ahead = _log(student, masked_states(student, layout, features, paths, block, [after])[0], after, layout)
    fixed = now & ~after
    ends = after & (paths.step == 0)
    log = _log(student, state, after, layout)
    told = torch.where(ahead > -torch.inf, ahead.exp() * (ahead - log), torch.zeros_like(log)).sum(dim=-1)
    consistent = told.sum() / max(1, len(told))
    known = fixed | ends
    ce = functional.nll_loss(_log(student, state, known, layout), paths.ids[known])
    agree = (log.detach().argmax(dim=-1) == paths.ids[after]).float()
    figures = {
        "kl": float(consistent.detach()),
        "ce": float(ce.detach()),
        "agree": float(agree.sum() / max(1, len(agree))),
    }
    return consistent + ce, figures
