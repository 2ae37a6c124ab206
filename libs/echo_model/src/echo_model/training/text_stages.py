"""Stages 1 and 2: the language model learns to report from frozen visual tokens, first left to right, then by RAD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from echo_model.training.features import Features
from echo_model.training.loop import run_stage
from echo_model.training.optim import Muon, Optimizers, split_for_muon
from echo_model.training.parallel import Share
from echo_model.training.rad import Region, draw_noise, lay_out, rad_mask
from echo_model.training.shape import Layout
from echo_model.training.texts import TokenisedReport, similar_rows

Loss = tuple[torch.Tensor, dict[str, float]]
WHOLE = Share()
_EMBEDDINGS = ("model.language_model.embed_tokens", "lm_head")


@dataclass(frozen=True)
class TextData:
    """What both stages read: visual tokens and reports of the same phantoms, and the prompt they share."""

    features: Features
    reports: list[TokenisedReport]
    layout: Layout

    @property
    def lengths(self) -> Any:
        """Tokens of every report, int64 (N,)."""
        return np.array([len(report.ids) for report in self.reports], dtype=np.int64)


def embed(model: Any, ids: torch.Tensor, layout: Layout, features: torch.Tensor) -> torch.Tensor:
    """Embeddings (B, L, H) of rows that start with the prompt, the image's places filled with its visual tokens."""
    words: torch.Tensor = model.model.language_model.embed_tokens(ids)
    index = layout.image_at[None, :, None].expand(ids.shape[0], -1, words.shape[-1])
    return words.scatter(1, index, features)


def hidden_states(model: Any, embeds: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Last hidden states (B, L, H) under a bool mask (L, L) and MRoPE positions (3, L)."""
    out = model.model.language_model(
        inputs_embeds=embeds,
        position_ids=positions[:, None].expand(-1, embeds.shape[0], -1),
        attention_mask={"full_attention": mask[None, None]},
        use_cache=False,
    )
    states: torch.Tensor = out.last_hidden_state
    return states


def ar_loss(model: Any, data: TextData, rows: Any, decisive_weight: float, share: Share = WHOLE) -> Loss:
    """Next-token cross-entropy of the reports and their EOS; decisive tokens count ``decisive_weight`` times."""
    layout = data.layout
    rows = share.own(rows)
    reports = [data.reports[row] for row in rows]
    length = max(len(report.ids) for report in reports) + 1
    ids = torch.full((len(reports), length), layout.eos)
    weights = torch.zeros(len(reports), length)
    for row, report in enumerate(reports):
        n = len(report.ids)
        ids[row, :n] = torch.from_numpy(report.ids)
        weights[row, : n + 1] = 1.0
        weights[row, :n] += (decisive_weight - 1) * torch.from_numpy(report.decisive)
    prompt = layout.prompt[None].expand(len(reports), -1)
    full = torch.cat([prompt, ids[:, :-1]], dim=1)
    embeds = embed(model, full, layout, data.features.rows(rows))
    causal = torch.ones(full.shape[1], full.shape[1], dtype=torch.bool).tril()
    states = hidden_states(model, embeds, layout.positions[:, : full.shape[1]], causal)[:, layout.length - 1 :]
    counted = weights > 0
    logits = model.lm_head(states[counted])
    losses = functional.cross_entropy(logits, ids[counted], reduction="none")
    hit = (logits.detach().argmax(-1) == ids[counted]).float()
    strong = weights[counted] > 1
    figures = {"ce": float(losses.detach().mean()), "hit": float(hit.mean()), "hit_decisive": float(hit[strong].mean())}
    return (losses * weights[counted]).sum() / share.counts(weights.sum()), figures


def rad_loss(
    model: Any,
    data: TextData,
    rows: Any,
    block: int,
    generator: torch.Generator,
    share: Share = WHOLE,
    decisive_weight: float = 1.0,
) -> Loss:
    """Cross-entropy of masked tokens in two complementary noisy copies: every token of a response is learnt once.

    Decisive tokens count ``decisive_weight`` times.
    """
    layout = data.layout
    prefix = layout.length // block * block
    tail = layout.prompt[prefix:]
    region = lay_out(tail, [torch.from_numpy(data.reports[row].ids) for row in rows], block, layout.eos)
    weights = region.open.float()
    for row, number in enumerate(rows):
        decisive = torch.from_numpy(data.reports[number].decisive)
        weights[row, len(tail) : len(tail) + len(decisive)] += (decisive_weight - 1) * decisive
    noise = draw_noise(region.open, block, generator)
    if share.world > 1:  # the noise is drawn for the whole batch, so that every process count trains on the same
        own = torch.from_numpy(share.own(np.arange(len(rows))))
        rows, noise, region = share.own(rows), noise[:, own], Region(region.ids[own], region.open[own])
        weights = weights[own]
    noisy = [region.ids.masked_fill(masked, layout.mask) for masked in noise]
    start = layout.prompt[:prefix][None].expand(len(rows), -1)
    full = torch.cat([start, region.ids, *noisy], dim=1)
    width = region.ids.shape[1]
    where = layout.positions[:, prefix : prefix + width]
    positions = torch.cat([layout.positions[:, :prefix], where, where, where], dim=1)
    embeds = embed(model, full, layout, data.features.rows(rows))
    states = hidden_states(model, embeds, positions, rad_mask(prefix, width, block, copies=2))[:, prefix + width :]
    masked = torch.cat([noise[0], noise[1]], dim=1)
    truth, counted = region.ids.repeat(1, 2)[masked], weights.repeat(1, 2)[masked]
    logits = model.lm_head(states[masked])
    losses = functional.cross_entropy(logits, truth, reduction="none")
    hit = (logits.detach().argmax(-1) == truth).float()
    figures = {"hit": float(hit.mean())}
    if decisive_weight > 1:
        figures["hit_decisive"] = float(hit[counted > 1].mean())
    return (losses * counted).sum() / share.counts(weights.sum()), figures


def train_text(
    name: str,
    model: Any,
    work: Path,
    loss: Callable[[Any, int], Loss],
    lengths: Any,
    *,
    samples: int,
    rate: float,
    muon_rate: float | None = None,
    batch: int = 8,
    first_row: int = 0,
    stop_after: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    check: Callable[[], dict[str, float]] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    share: Share = WHOLE,
) -> None:
    """Train the language model with a stage's ``loss(rows, step)``; the vision tower gets no gradients.

    ``rate`` is AdamW's. With ``muon_rate`` the matrices of the layers are left to Muon, and AdamW keeps the rest:
    about half the samples for the same loss on the demo model.
    """
    model.model.visual.requires_grad_(False)
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    layers, rest = ([], weights) if muon_rate is None else split_for_muon(model, keep=_EMBEDDINGS)
    matrices = [p for p in rest if p.ndim == 2]
    vectors = [p for p in rest if p.ndim != 2]
    adam = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(adam, lr=rate, betas=(0.9, 0.98))]
    if muon_rate is not None:
        parts.append(Muon(layers, lr=muon_rate))
    steps = samples // batch
    offset = first_row // batch

    def loss_of(step: int) -> Loss:
        return loss(similar_rows(lengths, step + offset, batch), step)

    run_stage(
        name,
        work,
        model,
        Optimizers(parts, steps, warmup=50),
        loss_of,
        steps=steps,
        batch=batch,
        stop_after=stop_after,
        say=say,
        check=check,
        stopped=stopped,
        share=share,
    )
    model.eval()
