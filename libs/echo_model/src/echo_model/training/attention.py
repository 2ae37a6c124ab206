"""Attention over a row of samples: a dense mask for short rows, FlexAttention's sparse one for long rows on a GPU."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from echo_model.training.rad import TokenIndex

NAME: Final = "echo_rows"
TILE: Final = 128
"""Tokens of a tile of the sparse mask; rows that use it are filled up to a multiple."""
DENSE_ON_GPU: Final = 1_024
DENSE_ON_CPU: Final = 12_288
"""Longest rows (tokens) with a dense mask. FlexAttention has no backward pass on a CPU: longer rows are refused."""


def use_rows(model: Any) -> None:
    """Let the language model of a `Qwen2_5_VLForConditionalGeneration` take both kinds of mask."""
    AttentionInterface.register(NAME, _attend)
    model.model.language_model.config._attn_implementation = NAME


def wants_tiles(length: int, device: torch.device) -> bool:
    """Whether a row of so many tokens gets the sparse mask. Raises ValueError for one too long for a CPU."""
    if device.type != "cpu":
        return length > DENSE_ON_GPU
    if length > DENSE_ON_CPU:
        raise ValueError(f"a row of {length} tokens is too long to train on a CPU (at most {DENSE_ON_CPU})")
    return False


def tiled_mask(index: TokenIndex, device: torch.device) -> BlockMask:
    """The rule of `rad.TokenIndex` as FlexAttention takes it, for a row of whole tiles.

    Tiles that nobody looks at are left out, those that everybody may look at need no rule. Found out a band of queries
    at a time: a mask of L x L entries never exists.
    """
    length = len(index.sample)
    tiles = length // TILE
    here = index.to(device)
    keys = torch.arange(length, device=device)
    some, whole = [], []
    for first in range(0, length, TILE):
        band = here.allowed(keys[first : first + TILE, None], keys[None]).view(TILE, tiles, TILE)
        some.append(band.any(dim=2).any(dim=0))
        whole.append(band.all(dim=2).all(dim=0))
    full = torch.stack(whole)
    partial = torch.stack(some) & ~full
    counts = [part.sum(dim=1, dtype=torch.int32)[None, None] for part in (partial, full)]
    # a stable sort puts the tiles that count first and keeps their order
    order = [(~part).int().argsort(dim=1, stable=True).int()[None, None] for part in (partial, full)]
    return BlockMask.from_kv_blocks(counts[0], order[0], counts[1], order[1], TILE, here.mask_mod())


def row_mask(index: TokenIndex, device: torch.device) -> torch.Tensor | BlockMask:
    """The mask of a row; one that `wants_tiles` must have whole tiles."""
    if wants_tiles(len(index.sample), device):
        return tiled_mask(index, device)
    return index.dense().to(device)[None, None]


@cache
def _kernel(kind: str) -> Any:
    return torch.compile(flex_attention) if kind == "cuda" else flex_attention


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of (B, heads, L, D) queries in the form that transformers wants; (B, L, heads, D) out."""
    if isinstance(attention_mask, torch.Tensor):
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
        return result
    # rotary positions are computed in float32, also under autocast
    query, key = query.to(value.dtype), key.to(value.dtype)
    attend = _kernel(query.device.type)
    out = attend(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None
