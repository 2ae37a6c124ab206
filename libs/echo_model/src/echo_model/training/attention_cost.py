"""What attention costs under RAD's layout and under a copy of the whole sequence, counted from their masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from echo_model.training.rad import TokenIndex, index_tokens

TILE: Final = 128
"""Edge in tokens of the squares that a block-sparse kernel (FlexAttention) computes or leaves out whole."""


@dataclass(frozen=True, slots=True)
class AttentionCost:
    """Query-key pairs of one sample in one head and layer; a forward pass does 4 x head size operations for each.

    ``whole``: what a kernel without gaps computes; ``tiled``: what one computes that leaves out empty tiles of ``TILE``
    tokens; ``allowed``: what the mask lets through, the least that any kernel can do.
    """

    tokens: int
    whole: int
    tiled: int
    allowed: int


def rad_layout(prompt: int, response: int, block: int) -> TokenIndex:
    """Vision and question once, the response twice: lengths in tokens, the response without its end token.

    As in training: the prompt's last tokens that fill no block go with the response, which ends on the block grid.
    """
    prefix = prompt // block * block
    return index_tokens([(prefix, _on_grid(prompt - prefix + response + 1, block))], block, copies=1)


def duplicated_layout(prompt: int, response: int, block: int) -> TokenIndex:
    """Everything twice, clean and noisy, as block diffusion does without regard to what is answer and what is given."""
    return index_tokens([(0, _on_grid(prompt + response + 1, block))], block, copies=1)


def attention_cost(index: TokenIndex) -> AttentionCost:
    """Count the pairs of a row; it holds its mask (L, L) for a moment."""
    mask = index.dense()
    tokens = len(mask)
    across = -(-tokens // TILE)
    padded = torch.zeros(across * TILE, across * TILE, dtype=torch.bool)
    padded[:tokens, :tokens] = mask
    tiles = padded.reshape(across, TILE, across, TILE).any(dim=3).any(dim=1)
    return AttentionCost(tokens, tokens * tokens, int(tiles.sum()) * TILE * TILE, int(mask.sum()))


def _on_grid(length: int, edge: int) -> int:
    return -(-length // edge) * edge
