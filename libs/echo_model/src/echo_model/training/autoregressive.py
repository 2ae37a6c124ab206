"""Left-to-right decoding of a batch with one prompt: how stage 1 is measured, and answers to distil from directly."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache

from echo_model.training.rollout import Trajectories, canonical_log, log_probabilities
from echo_model.training.shape import Layout
from echo_model.training.text_stages import embed


@torch.no_grad()
def decode_left_to_right(
    model: Any, layout: Layout, features: torch.Tensor, *, max_tokens: int, canonical: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy answers to visual tokens (B, V, H), all rows in step, cut at the first end token or after `max_tokens`.

    Returns token ids (B, T), the end token from the first one on, and ended (B,). `canonical`: see `rollout`.
    """
    rows = features.shape[0]
    cache = DynamicCache(config=model.config.text_config)
    embeds = embed(model, layout.prompt.expand(rows, -1), layout, features)
    length = layout.length
    visible = torch.ones(length, length, dtype=torch.bool, device=features.device).tril()
    ended = torch.zeros(rows, dtype=torch.bool, device=features.device)
    answers: list[torch.Tensor] = []
    while len(answers) < max_tokens and not bool(ended.all()):
        start = length + len(answers) - embeds.shape[1]
        states = model.model.language_model(
            inputs_embeds=embeds,
            position_ids=layout.positions[:, None, start : start + embeds.shape[1]].expand(-1, rows, -1),
            attention_mask={"full_attention": visible[None, None]},
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        log = log_probabilities(model.lm_head(states[:, -1]), layout.mask)
        best = (log if canonical is None else canonical_log(log, canonical)).argmax(dim=-1)
        best = best.masked_fill(ended, layout.eos)
        ended = ended | (best == layout.eos)
        answers.append(best)
        embeds = model.model.language_model.embed_tokens(best)[:, None]
        visible = torch.ones(1, length + len(answers), dtype=torch.bool, device=features.device)
    return torch.stack(answers, dim=1), ended


def as_trajectories(ids: torch.Tensor, ended: torch.Tensor, layout: Layout, block: int) -> Trajectories:
    """Answers (B, T) on the block grid as if one step had fixed every token, sure of itself.

    Distilling them is plain cross-entropy on their tokens. The prompt's tail stands ahead of them.
    """
    tail = layout.prompt[layout.length // block * block :].expand(ids.shape[0], -1)
    first = tail.shape[1]
    lengths = (ids != layout.eos).sum(dim=1)
    used = -(-(first + lengths + 1) // block) * block
    width = int(used.max())
    grid = torch.cat([tail, functional.pad(ids, (0, max(0, width - first - ids.shape[1])), value=layout.eos)], dim=1)
    grid = grid[:, :width]
    at = torch.arange(width)[None]
    told = (at >= first) & (at <= first + lengths[:, None])
    likeliest = grid[..., None]
    return Trajectories(
        grid, told.long(), likeliest, torch.zeros(likeliest.shape), (at >= first) & (at < used[:, None]), ended
    )
