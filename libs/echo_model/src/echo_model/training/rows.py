"""Several studies of different prompts in one row of tokens, laid out for a stage.

A row is what goes through the model at once: the samples behind each other, no padding between them, who may look at
whom told by `rad.TokenIndex`. The autoregressive stage is the same layout with blocks of one token and no noisy copy:
a token then sees the prompt and what stands before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from echo_model.training.rad import TokenIndex, draw_noise, index_tokens, lay_out
from echo_model.training.rollout import Trajectories
from echo_model.training.shape import Layout
from echo_model.training.texts import TokenisedReport

COPIES = 2
"""Noisy copies of RAD: what one masks, the other shows."""


@dataclass(frozen=True)
class Row:
    """Token ids (L,), positions (3, L), and who may look at whom.

    ``image_at``: int64 (V,), places that hold a visual token; ``image_from``: which one, counted over all pictures of
    the row. ``learn``: int64 (N,), places whose hidden state is asked for a token; ``truth``: int64 (N,), that token;
    ``weights``: float (N,).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    image_at: torch.Tensor
    image_from: torch.Tensor
    index: TokenIndex
    learn: torch.Tensor
    truth: torch.Tensor
    weights: torch.Tensor

    def padded(self, multiple: int) -> Row:
        """Filled up to a multiple of so many tokens; the padding is a sample of its own."""
        lack = -len(self.ids) % multiple
        if not lack:
            return self
        index = TokenIndex(
            functional.pad(self.index.sample, (0, lack), value=-1),
            functional.pad(self.index.part, (0, lack)),
            functional.pad(self.index.block, (0, lack)),
        )
        ids, positions = functional.pad(self.ids, (0, lack)), functional.pad(self.positions, (0, lack))
        return replace(self, ids=ids, positions=positions, index=index)


@dataclass(frozen=True)
class _Part:
    """One sample of a row: as in `Row`, with ``visual`` (L,), the visual token of each place or -1."""

    ids: torch.Tensor
    positions: torch.Tensor
    visual: torch.Tensor
    lengths: tuple[int, int]
    learn: torch.Tensor
    truth: torch.Tensor
    weights: torch.Tensor


def autoregressive_row(samples: Sequence[tuple[Layout, TokenisedReport]], decisive_weight: float) -> Row:
    """Every token of the reports and the end token behind each, asked for at the place before it."""
    parts = []
    for layout, report in samples:
        answer = torch.from_numpy(report.ids)
        weights = torch.ones(len(answer) + 1)
        weights[:-1] += (decisive_weight - 1) * torch.from_numpy(report.decisive)
        start = layout.length
        parts.append(
            _Part(
                torch.cat([layout.prompt, answer]),
                layout.positions[:, : start + len(answer)],
                torch.cat([_visual(layout), torch.full_like(answer, -1)]),
                (start, len(answer)),
                start - 1 + torch.arange(len(answer) + 1),
                torch.cat([answer, torch.tensor([layout.eos])]),
                weights,
            )
        )
    return _join(parts, block=1, copies=0)


def rad_row(
    samples: Sequence[tuple[Layout, TokenisedReport]],
    block: int,
    generators: Sequence[torch.Generator],
    decisive_weight: float = 1.0,
) -> Row:
    """Prompt, clean answer and two complementary noisy copies of each sample (`rad`); a generator a sample."""
    parts = []
    for (layout, report), generator in zip(samples, generators, strict=True):
        tail = layout.prompt[layout.length // block * block :]
        region = lay_out(tail, [torch.from_numpy(report.ids)], block, layout.eos)
        noise = draw_noise(region.open, block, generator)[:, 0]
        weights = torch.ones(region.ids.shape[1])
        weights[len(tail) : len(tail) + len(report.ids)] += (decisive_weight - 1) * torch.from_numpy(report.decisive)
        part = _diffused(layout, region.ids[0], list(noise), block)
        parts.append(replace(part, weights=torch.cat([weights[masked] for masked in noise])))
    return _join(parts, block, COPIES)


def distillation_row(samples: Sequence[tuple[Layout, Trajectories]], block: int) -> Row:
    """Prompt, the teacher's answer and a copy with all of it masked; a trajectory of one answer (1, R) a sample.

    Asked for are all places of the answers; ``weights`` is the teacher's step that fixed each, 0 behind an end.
    """
    parts = []
    for layout, path in samples:
        part = _diffused(layout, path.ids[0], [path.open[0]], block)
        parts.append(replace(part, weights=path.step[0][path.open[0]].float()))
    return _join(parts, block, copies=1)


def _diffused(layout: Layout, clean: torch.Tensor, masks: Sequence[torch.Tensor], block: int) -> _Part:
    """A sample with a noisy copy of its region (prompt's tail and answer) for every mask."""
    prefix, width = layout.length // block * block, len(clean)
    visual = _visual(layout)
    tail = functional.pad(visual[prefix:], (0, width - (layout.length - prefix)), value=-1)
    where = layout.positions[:, prefix : prefix + width]
    copies = len(masks)
    learn = [prefix + width * number + mask.nonzero()[:, 0] for number, mask in enumerate(masks, start=1)]
    truth = torch.cat([clean[mask] for mask in masks])
    return _Part(
        torch.cat([layout.prompt[:prefix], clean, *(clean.masked_fill(mask, layout.mask) for mask in masks)]),
        torch.cat([layout.positions[:, :prefix], where.repeat(1, 1 + copies)], dim=1),
        torch.cat([visual[:prefix], tail.repeat(1 + copies)]),
        (prefix, width),
        torch.cat(learn),
        truth,
        torch.ones(len(truth)),
    )


def _visual(layout: Layout) -> torch.Tensor:
    """Which visual token stands at each place of a prompt; -1: none."""
    visual = torch.full_like(layout.prompt, -1)
    visual[layout.image_at] = torch.arange(len(layout.image_at))
    return visual


def _join(parts: Sequence[_Part], block: int, copies: int) -> Row:
    visual, learn, tokens, pictures = [], [], 0, 0
    for part in parts:
        visual.append(torch.where(part.visual >= 0, part.visual + pictures, -1))
        learn.append(part.learn + tokens)
        tokens += len(part.ids)
        pictures += int(part.visual.max()) + 1
    all_visual = torch.cat(visual)
    image_at = (all_visual >= 0).nonzero()[:, 0]
    return Row(
        torch.cat([part.ids for part in parts]),
        torch.cat([part.positions for part in parts], dim=1),
        image_at,
        all_visual[image_at],
        index_tokens([part.lengths for part in parts], block, copies),
        torch.cat(learn),
        torch.cat([part.truth for part in parts]),
        torch.cat([part.weights for part in parts]),
    )
