"""Direct Conditional Distillation (DCD, ECHO, arXiv 2604.09450): stage 3, several denoising steps into one.

The teacher, a model of stage 2, decodes on-policy (``rollout``). What it believed about each position at the step that
fixed it, stitched together over a block, is a joint target that one step from full masks can be taught: the later a
position was fixed, the more of its neighbours its distribution already knows. The student sees the RAD layout built
with the teacher's own tokens, every token of the answer masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from echo_model.training.parallel import Share
from echo_model.training.rad import rad_mask
from echo_model.training.rollout import Trajectories, log_probabilities, roll_out, usable
from echo_model.training.shape import Layout
from echo_model.training.text_stages import WHOLE, Loss, TextData, embed, hidden_states


@dataclass(frozen=True)
class Distillation:
    """What the student is taught with; the defaults are the published method.

    `tau`: confidence at which the teacher fixes a token. `top_k`: tokens of its distributions that are kept.
    `canonical`: see `rollout`. `weighted`: weights proportional to the unmasking step. `eos_weight`: cross-entropy on
    the end tokens. `ce_weight`: cross-entropy on the teacher's tokens. `reverse`: KL(student || teacher) instead.
    `decisive`: tokens (bool (V,), see `texts.decisive_tokens`) that count `decisive_weight` times in both.
    """

    tau: float = 0.85
    top_k: int = 64
    canonical: float | None = None
    weighted: bool = True
    eos_weight: float = 1.0
    ce_weight: float = 0.0
    reverse: bool = False
    decisive: torch.Tensor | None = None
    decisive_weight: float = 1.0


def divergence(top_ids: torch.Tensor, top_log: torch.Tensor, student_log: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) in nats, the teacher's k likeliest tokens and the rest as one: (N, k), (N, V) -> (N,)."""
    student_top = student_log.gather(-1, top_ids)
    kept = top_log.exp()
    inside = (kept * (top_log - student_top)).sum(dim=-1)
    left = (1 - kept.sum(dim=-1)).clamp_min(0.0)
    # the student's tail is summed over its other tokens: one minus the rest would lose a small one to rounding
    tail_log = student_log.scatter(-1, top_ids, -torch.inf).logsumexp(dim=-1)
    outside = torch.where(left > 1e-6, left * (left.clamp_min(1e-6).log() - tail_log), torch.zeros_like(left))
    return inside + outside


def reverse_divergence(top_ids: torch.Tensor, top_log: torch.Tensor, student_log: torch.Tensor) -> torch.Tensor:
    """KL(student || teacher) over the same bins as `divergence`: (N, k), (N, V) -> (N,).

    A bin that the teacher never chooses counts as one millionth, or one such choice would cost without bounds.
    """
    student_top = student_log.gather(-1, top_ids)
    tail_log = student_log.scatter(-1, top_ids, -torch.inf).logsumexp(dim=-1)
    left_log = (1 - top_log.exp().sum(dim=-1)).clamp_min(1e-6).log()
    inside = student_top.exp() * (student_top - top_log.clamp_min(-13.8))
    inside = torch.where(student_top > -torch.inf, inside, torch.zeros_like(inside)).sum(dim=-1)
    return inside + tail_log.exp() * (tail_log - left_log)


def masked_states(
    model: Any, layout: Layout, features: torch.Tensor, paths: Trajectories, block: int, masks: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Last hidden states (B, R, H) of a copy of the answers for every mask (bool (B, R)), clean blocks beside them."""
    prefix, width = layout.length // block * block, paths.ids.shape[1]
    start = layout.prompt[:prefix].expand(paths.ids.shape[0], -1)
    noisy = [paths.ids.masked_fill(masked, layout.mask) for masked in masks]
    where = layout.positions[:, prefix : prefix + width]
    positions = torch.cat([layout.positions[:, :prefix], *[where] * (1 + len(masks))], dim=1)
    embeds = embed(model, torch.cat([start, paths.ids, *noisy], dim=1), layout, features)
    states = hidden_states(model, embeds, positions, rad_mask(prefix, width, block, copies=len(masks)))
    return list(torch.split(states[:, prefix + width :], width, dim=1))


def student_states(model: Any, layout: Layout, features: torch.Tensor, paths: Trajectories, block: int) -> torch.Tensor:
    """The student's last hidden states (B, R, H) of one step from full masks, the teacher's tokens as clean blocks."""
    return masked_states(model, layout, features, paths, block, [paths.open])[0]


def distil_loss(
    student: Any,
    layout: Layout,
    features: torch.Tensor,
    paths: Trajectories,
    block: int,
    options: Distillation,
    share: Share = WHOLE,
) -> Loss:
    """Loss of the student on given answers, features (B, V, H): KL, end tokens and, if wanted, cross-entropy."""
    states = student_states(student, layout, features, paths, block)
    fixed, ends = paths.step > 0, paths.open & (paths.ids == layout.eos)
    log = log_probabilities(student.lm_head(states[fixed]), layout.mask)
    told = torch.ones(len(log))
    if options.decisive is not None:
        told += (options.decisive_weight - 1) * options.decisive[paths.ids[fixed]]
    weights = told * paths.step[fixed] if options.weighted else told
    measure = reverse_divergence if options.reverse else divergence
    apart = measure(paths.top_ids[fixed], paths.top_log[fixed], log)
    end_log = log_probabilities(student.lm_head(states[ends]), layout.mask)
    all_weights, all_ends, all_told = share.counts(torch.stack([weights.sum(), ends.sum(), told.sum()]))
    kl = (apart * weights).sum() / all_weights
    end = -end_log[:, layout.eos].sum() / all_ends
    ce = (functional.nll_loss(log, paths.ids[fixed], reduction="none") * told).sum() / all_told
    agree = (log.detach().argmax(dim=-1) == paths.ids[fixed]).float().mean()
    figures = {"kl": float(kl.detach()), "eos": float(end.detach()), "ce": float(ce.detach()), "agree": float(agree)}
    figures["teacher_steps"] = float(paths.step[fixed].float().mean())
    return kl + options.eos_weight * end + options.ce_weight * ce, figures


def dcd_loss(
    student: Any,
    teacher: Any,
    data: TextData,
    rows: Any,
    block: int,
    options: Distillation,
    share: Share = WHOLE,
) -> Loss:
    """Let the teacher decode and teach the student what came of it. Answers that loop or never end are left out."""
    layout = data.layout
    rows = share.own(rows)
    features = data.features.rows(rows)
    longest = layout.positions.shape[1] - layout.length - block
    max_tokens = min(longest, int(data.lengths.max()) + 2 * block)
    top_k = min(options.top_k, student.config.text_config.vocab_size - 1)
    paths = roll_out(
        teacher,
        layout,
        features,
        block,
        tau=options.tau,
        top_k=top_k,
        max_tokens=max_tokens,
        canonical=options.canonical,
    )
    use = usable(paths)
    figures = {"used": float(use.float().mean())}
    if not bool(use.any()):
        share.counts(torch.zeros(3))  # the other processes may have answers, and count together
        return torch.zeros((), requires_grad=True), figures
    loss, more = distil_loss(student, layout, features[use], paths.chosen(use), block, options, share)
    return loss, figures | more
