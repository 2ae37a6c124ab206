"""The vision tower with its attention windows batched.

The stock modules (transformers, `modeling_qwen2_5_vl`) run one attention call for every window and layer when no
variable-length kernel is installed: thousands for one radiograph. Here all windows of a layer are one call, the ragged
ones at the edges padded and masked. Weights, order of patches and arithmetic are those of the stock tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class _Groups:
    """Patches that attend to each other: `index` (groups, longest) into the sequence, padded with 0 where `real` is
    False; `where` (patches,) the place of every patch in the flattened index."""

    index: torch.Tensor
    real: torch.Tensor
    where: torch.Tensor

    @classmethod
    def of(cls, lengths: list[int], device: torch.device) -> _Groups:
        """Groups of consecutive patches."""
        longest = max(lengths)
        sizes = torch.tensor(lengths)
        starts = sizes.cumsum(0) - sizes
        place = torch.arange(longest)
        real = place < sizes[:, None]
        index = torch.where(real, starts[:, None] + place, 0)
        return cls(index.to(device), real.to(device), real.flatten().nonzero().flatten().to(device))


def vision_features(visual: Any, pixel_values: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
    """Features (image tokens, out_hidden) of all pictures in order, as the stock tower's `pooler_output`.

    `visual`: a `Qwen2_5_VisionTransformerPretrainedModel`; `pixel_values` (patches, patch_dim); `grid_thw` (pictures,
    3) counted in patches. A tower with `gradient_checkpointing` that learns keeps no activations inside its blocks.
    """
    config, device = visual.config, visual.patch_embed.proj.weight.device
    grids: list[list[int]] = grid_thw.tolist()
    merge = config.spatial_merge_size
    order, windows = _window_order(grids, merge, config.window_size // merge // config.patch_size)
    order = order.to(device)
    states = visual.patch_embed(pixel_values)
    states = _reorder(states, order, merge**2)
    positions = _positions(grids, merge).to(device)
    cos, sin = (_reorder(part.float(), order, merge**2).unsqueeze(1) for part in _rotary(visual, states, positions))
    whole = [rows * columns for frames, rows, columns in grids for _ in range(frames)]
    again = visual.training and visual.gradient_checkpointing and torch.is_grad_enabled()
    near, far = _Groups.of([merge**2 * size for size in windows], device), _Groups.of(whole, device)
    for number, block in enumerate(visual.blocks):
        groups = far if number in config.fullatt_block_indexes else near
        if again:
            states = checkpoint(_block, block, states, cos, sin, groups, use_reentrant=False)
        else:
            states = _block(block, states, cos, sin, groups)
    features: torch.Tensor = visual.merger(states)
    return features[order.argsort()]


def _block(block: Any, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, groups: _Groups) -> torch.Tensor:
    """One layer; (patches, hidden) in and out."""
    states = states + _attention(block.attn, block.norm1(states), cos, sin, groups)
    result: torch.Tensor = states + block.mlp(block.norm2(states))
    return result


def _attention(
    attention: Any, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, groups: _Groups
) -> torch.Tensor:
    """Attention inside each group; (patches, hidden) in and out."""
    query, keys, values = attention.qkv(states).view(states.shape[0], 3, attention.num_heads, -1).unbind(1)
    heads = (_rotate(query, cos, sin), _rotate(keys, cos, sin), values)
    query, keys, values = (part[groups.index].transpose(1, 2) for part in heads)  # (groups, heads, longest, head_dim)
    ragged = groups.where.shape[0] != groups.index.numel()
    mask = groups.real[:, None, None, :] if ragged else None
    out = scaled_dot_product_attention(query, keys, values, attn_mask=mask).transpose(1, 2).flatten(0, 1)
    result: torch.Tensor = attention.proj((out[groups.where] if ragged else out).flatten(1))
    return result


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions, computed in float32 as the stock tower does."""
    wide = heads.float()
    left, right = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-right, left], dim=-1) * sin).to(heads.dtype)


def _rotary(visual: Any, states: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine (patches, head_dim)."""
    cos, sin = visual.rotary_pos_emb(states, positions)
    return cos, sin


def _reorder(rows: torch.Tensor, order: torch.Tensor, unit: int) -> torch.Tensor:
    """Put units of `unit` consecutive rows into another order."""
    return rows.reshape(-1, unit, rows.shape[-1])[order].reshape(rows.shape)


def _window_order(grids: list[list[int]], merge: int, edge: int) -> tuple[torch.Tensor, list[int]]:
    """Order of the merged patches that puts each window's together, and the windows' sizes in merged patches."""
    order: list[torch.Tensor] = []
    sizes: list[int] = []
    begin = 0
    for frames, rows, columns in grids:
        number = torch.arange(frames * rows * columns // merge**2).view(frames, rows // merge, columns // merge) + begin
        begin += number.numel()
        for frame in number:
            for band in frame.split(edge, dim=0):
                for window in band.split(edge, dim=1):
                    order.append(window.flatten())
                    sizes.append(window.numel())
    return torch.cat(order), sizes


def _positions(grids: list[list[int]], merge: int) -> torch.Tensor:
    """Row and column (patches, 2) of every patch, merged patches together."""
    parts = []
    for frames, rows, columns in grids:
        where = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1)
        where = where.view(rows // merge, merge, columns // merge, merge, 2).transpose(1, 2).reshape(-1, 2)
        parts.append(where.repeat(frames, 1))
    return torch.cat(parts)
