"""A teacher's own decoding of studies with different prompts together: `rollout.roll_out` for rows that differ.

Prompts are filled up on the left, by whole blocks that nobody looks at, so that all rows stand at the same place of the
cache, each on its own block grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from echo_model.training.rollout import Trajectories, denoise, log_probabilities
from echo_model.training.shape import Layout


@torch.no_grad()
def roll_out_studies(
    teacher: Any,
    layouts: Sequence[Layout],
    features: Sequence[torch.Tensor],
    block: int,
    *,
    tau: float,
    top_k: int,
    max_tokens: int,
    canonical: float | None = None,
) -> Trajectories:
    """Let the teacher decode an answer to each prompt with its visual tokens (V, H), a block at a time.

    Rules and result are those of `roll_out`; decoding ends after the blocks that hold `max_tokens` of the row with the
    longest prompt's tail. The trajectories are on the CPU.
    """
    rows, device = len(layouts), features[0].device
    language = teacher.model.language_model
    eos, mask = layouts[0].eos, layouts[0].mask
    prefixes = [layout.length // block * block for layout in layouts]
    width = max(prefixes)
    lacks = torch.tensor([width - prefix for prefix in prefixes], device=device)
    tails = torch.tensor([layout.length - prefix for layout, prefix in zip(layouts, prefixes, strict=True)])
    prompts = [_embedded(language, layout, seen) for layout, seen in zip(layouts, features, strict=True)]
    cache = DynamicCache(config=teacher.config.text_config)

    def forward(embeds: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = language(
            inputs_embeds=embeds,
            position_ids=positions.to(device),
            attention_mask={"full_attention": visible[:, None]},
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return states

    if width:
        before = pad_sequence([p[:n] for p, n in zip(prompts, prefixes, strict=True)], True, padding_side="left")
        at = torch.stack(
            [
                functional.pad(layout.positions[:, :prefix], (width - prefix, 0))
                for layout, prefix in zip(layouts, prefixes, strict=True)
            ],
            dim=1,
        )
        grid = torch.arange(width, device=device)
        number, real = grid // block, grid >= lacks[:, None]
        causal = number[None, :] <= number[:, None]
        # what fills up sees itself, so that no row of the attention is empty
        forward(before, at, causal & (real[:, None] | (~real[:, :, None] & (grid[None] == grid[:, None]))))
    longest_tail = int(tails.max())
    ends = pad_sequence([p[n:] for p, n in zip(prompts, prefixes, strict=True)], True)
    ids_of_tails = pad_sequence([y.prompt[n:] for y, n in zip(layouts, prefixes, strict=True)], True).to(device)
    tails = tails.to(device)
    parts: list[tuple[torch.Tensor, ...]] = []
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    place = torch.arange(block, device=device)
    for first in range(0, -(-(longest_tail + max_tokens) // block) * block, block):
        given = (first == 0) & (place < tails[:, None])
        ids = torch.full((rows, block), mask, device=device)
        start = torch.zeros(rows, block, ends.shape[2], dtype=ends.dtype, device=device)
        if first == 0 and longest_tail:
            ids[:, :longest_tail] = torch.where(given[:, :longest_tail], ids_of_tails, mask)
            start[:, :longest_tail] = ends
        positions = torch.stack(
            [y.positions[:, n + first : n + first + block] for y, n in zip(layouts, prefixes, strict=True)], dim=1
        )
        keys = torch.arange(width + first + block, device=device)
        visible = (keys >= lacks[:, None])[:, None].expand(-1, block, -1)
        step = torch.zeros(rows, block, dtype=torch.long, device=device)
        top_ids = torch.zeros(rows, block, top_k, dtype=torch.long, device=device)
        top_log = torch.zeros(rows, block, top_k, device=device)
        masked = ~given
        number_of_step = 0

        def embedded(tokens: torch.Tensor, given: torch.Tensor = given, start: torch.Tensor = start) -> torch.Tensor:
            # the prompt's tail may hold places of a picture, so its embeddings are taken from the prompt
            return torch.where(given[..., None], start, language.embed_tokens(tokens))

        while bool(masked.any()):
            number_of_step += 1
            log = log_probabilities(teacher.lm_head(forward(embedded(ids), positions, visible)), mask)
            cache.crop(-block)
            chosen, best, log = denoise(log, masked, tau, canonical)
            likeliest = log.topk(top_k, dim=-1)
            ids[chosen], step[chosen] = best[chosen], number_of_step
            top_ids[chosen], top_log[chosen] = likeliest.indices[chosen], likeliest.values[chosen]
            masked &= ~chosen
        forward(embedded(ids), positions, visible)
        end = (ids == eos) & ~given
        after = (end.long().cumsum(dim=1) - end.long()) > 0  # behind the first end token of this block
        gone = ended[:, None]
        silent = (after | gone) & ~given
        parts.append((ids.masked_fill(silent, eos), step.masked_fill(silent, 0), top_ids, top_log, ~given & ~gone))
        ended = ended | end.any(dim=1)
        if bool(ended.all()):
            break
    ids, step, top_ids, top_log, open_ = (torch.cat(group, dim=1).cpu() for group in zip(*parts, strict=True))
    return Trajectories(ids, step, top_ids, top_log, open_, ended.cpu())


def _embedded(language: Any, layout: Layout, features: torch.Tensor) -> torch.Tensor:
    """Embeddings (P, H) of a prompt, its visual tokens in place."""
    words: torch.Tensor = language.embed_tokens(layout.prompt.to(features.device))
    return words.index_copy(0, layout.image_at.to(features.device), features.to(words.dtype))
