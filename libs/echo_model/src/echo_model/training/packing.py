"""Neat packing: several samples of RAD in one row, without leakage between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from echo_model.training.rad import TokenIndex, draw_noise, index_tokens, lay_out
from echo_model.training.text_stages import Loss, TextData


def fill_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Distribute samples over rows of at most ``capacity`` tokens: longest first, each into the fullest row it fits.

    Returns the samples' places by row, in a fixed order. A sample longer than the capacity gets a row of its own.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for place in np.argsort([-length for length in lengths], kind="stable").tolist():
        fitting = [row for row, left in enumerate(room) if left >= lengths[place]]
        if fitting:
            row = min(fitting, key=lambda at: (room[at], at))
            rows[row].append(place)
            room[row] -= lengths[place]
        else:
            rows.append([place])
            room.append(capacity - lengths[place])
    return rows


@dataclass(frozen=True)
class PackedRow:
    """One row of samples: embeddings (1, L, H), MRoPE positions (3, L), and what is learnt from it.

    ``masked``: bool (L,), the masked tokens of the noisy copies. ``truth``: int64 (L,), what stands behind each token.
    """

    embeds: torch.Tensor
    positions: torch.Tensor
    index: TokenIndex
    masked: torch.Tensor
    truth: torch.Tensor


def pack_rad(model: Any, data: TextData, rows: Sequence[int], block: int, generator: torch.Generator) -> PackedRow:
    """Lay the samples ``rows`` out for RAD behind each other, each padded to its own last block only."""
    layout = data.layout
    prefix = layout.length // block * block
    tail = layout.prompt[prefix:]
    ids, positions, masked, truth, lengths, features = [], [], [], [], [], data.features.rows(rows)
    for row in rows:
        region = lay_out(tail, [torch.from_numpy(data.reports[row].ids)], block, layout.eos)
        noise = draw_noise(region.open, block, generator)[:, 0]
        clean = region.ids[0]
        noisy = [clean.masked_fill(part, layout.mask) for part in noise]
        ids.append(torch.cat([layout.prompt[:prefix], clean, *noisy]))
        where = layout.positions[:, prefix : prefix + len(clean)]
        positions.append(torch.cat([layout.positions[:, :prefix], where, where, where], dim=1))
        masked.append(torch.cat([torch.zeros(prefix + len(clean), dtype=torch.bool), noise[0], noise[1]]))
        truth.append(torch.cat([layout.prompt[:prefix], clean, clean, clean]))
        lengths.append((prefix, len(clean)))
    starts = np.cumsum([0, *(len(part) for part in ids[:-1])]).tolist()
    images = torch.cat([start + layout.image_at for start in starts])
    words: torch.Tensor = model.model.language_model.embed_tokens(torch.cat(ids))
    embeds = words.index_copy(0, images, features.flatten(0, 1).to(words.dtype))
    index = index_tokens(lengths, block, copies=2)
    return PackedRow(embeds[None], torch.cat(positions, dim=1), index, torch.cat(masked), torch.cat(truth))


def packed_states(model: Any, row: PackedRow) -> torch.Tensor:
    """Last hidden states (L, H) of a packed row."""
    out = model.model.language_model(
        inputs_embeds=row.embeds,
        position_ids=row.positions[:, None],
        attention_mask={"full_attention": row.index.dense()[None, None]},
        use_cache=False,
    )
    states: torch.Tensor = out.last_hidden_state[0]
    return states


def packed_rad_loss(
    model: Any, data: TextData, rows: Sequence[int], block: int, generator: torch.Generator, capacity: int
) -> Loss:
    """`text_stages.rad_loss` with the batch packed into rows of at most ``capacity`` tokens."""
    prefix, tail = data.layout.length // block * block, data.layout.length % block
    sizes = [prefix + 3 * -(-(tail + len(data.reports[row].ids) + 1) // block) * block for row in rows]
    total, hits, counted = torch.zeros(()), 0, 0
    for places in fill_rows(sizes, capacity):
        row = pack_rad(model, data, [int(rows[place]) for place in places], block, generator)
        logits = model.lm_head(packed_states(model, row)[row.masked])
        truth = row.truth[row.masked]
        total = total + functional.cross_entropy(logits, truth, reduction="sum")
        hits += int((logits.detach().argmax(-1) == truth).sum())
        counted += len(truth)
    return total / counted, {"hit": hits / counted}


def attention_pairs(prompt: int, response: int, copies: int = 1) -> tuple[int, int]:
    """Query-key pairs that a kernel without gaps computes for one sample: RAD, and whole duplication of the sequence.

    RAD repeats the response alone; published figure at 2,870 vision tokens: about 3.6 times fewer.
    """
    return (prompt + (1 + copies) * response) ** 2, ((1 + copies) * (prompt + response)) ** 2
