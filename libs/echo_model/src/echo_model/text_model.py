"""The language model's layers, run on a static key-value cache that many sequences share.

The arithmetic is that of the stock Qwen2.5-VL modules (transformers, `modeling_qwen2_5_vl`), whose weights and linear
layers are used as they are. What differs: keys and values live in memory allocated once, every sequence of a batch
stands at a place of its own, and the query heads that share a key-value head are folded onto it, so that keys and
values are never repeated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad, rms_norm, scaled_dot_product_attention


class KeyValueCache:
    """Keys and values of `slots` sequences of up to `rows` tokens: (layers, slots, rows, 2, key-value heads, head_dim).

    Starts as zeros: rows that are masked out still take part in a product, where a NaN would spoil the sum.
    """

    def __init__(self, config: Any, slots: int, rows: int, like: torch.Tensor) -> None:
        """`config`: the text configuration; `like`: a tensor of the wanted type and device."""
        heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, slots, rows, 2, heads, width)
        self.memory = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self._flat = self.memory.view(shape[0], slots * rows, 2, heads, width)

    def write(self, layer: int, at: torch.Tensor, rows: torch.Tensor) -> None:
        """Store keys and values (n, W, 2 * heads, head_dim), keys first, in the rows `at` (n * W,) of all slots."""
        self._flat[layer].index_copy_(0, at, rows.reshape(at.shape[0], 2, -1, rows.shape[-1]))

    def read(self, layer: int, slots: slice, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Views (n, heads, rows, head_dim) of the keys and values."""
        keys, values = self.memory[layer, slots, rows].unbind(2)
        return keys.transpose(1, 2), values.transpose(1, 2)


class TextModel:
    """The decoder layers and the head of a `Qwen2_5_VLForConditionalGeneration`, without its masks and caches.

    With `packed`, the projections of one layer that read the same input are put into one matrix each (fewer, larger
    products); the model's own weights become views of it, so that nothing is held twice. Only for a model that the
    caller owns, and whose linear layers are plain ones.
    """

    def __init__(self, model: Any, *, packed: bool = False) -> None:
        self.language_model = model.model.language_model
        self.head = model.lm_head
        self.config = self.language_model.config
        self.layers = [_Layer(layer, self.config, packed=packed) for layer in self.language_model.layers]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of tokens: (...,) to (..., hidden)."""
        embedded: torch.Tensor = self.language_model.embed_tokens(ids)
        return embedded

    def rotary(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and signed sine (L, head_dim) for three-axis positions (3, L).

        The sign of the rotation is put into the sine's first half, so that `_rotate` needs no negation.
        """
        like = self.language_model.embed_tokens.weight[:1]
        cos, sin = self.language_model.rotary_emb(like, positions.unsqueeze(1))
        half = sin.shape[-1] // 2
        return cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)

    def forward(
        self,
        embeds: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        bias: torch.Tensor,
        cache: KeyValueCache,
        write: torch.Tensor,
        slots: slice,
        rows: slice,
    ) -> torch.Tensor:
        """Run W new rows of n sequences. Returns hidden states (n, W, hidden).

        `embeds` (n, W, hidden); `rotary` cosine and signed sine (n, W, head_dim); `bias` (n, 1, W, keys) added to the
        attention scores; `write` (n * W,) rows of the cache that take the new keys and values; `slots`, `rows`: the
        part of the cache that is looked at, the new rows included.
        """
        query_heads, shared = self.config.num_attention_heads, self.config.num_key_value_heads
        cos, sin = self._per_head(*rotary)
        folded = bias.repeat(1, 1, query_heads // shared, 1)
        states = embeds
        for number, layer in enumerate(self.layers):
            heads = _rotate(layer.project(states), cos, sin)
            cache.write(number, write, heads[:, :, query_heads:])
            seen = cache.read(number, slots, rows)
            states = layer.finish(states, _attend(heads[:, :, :query_heads], *seen, folded))
        return _norm(self.language_model.norm, states)

    def _per_head(self, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, W, head_dim) to (n, W, all heads, head_dim): the value heads, which come last, are not turned."""
        turned = self.config.num_attention_heads + self.config.num_key_value_heads
        still = (0, 0, 0, self.config.num_key_value_heads)
        cos, sin = (part.unsqueeze(2).expand(-1, -1, turned, -1) for part in (cos, sin))
        return pad(cos, still, value=1.0), pad(sin, still, value=0.0)


class _Layer:
    """One decoder layer around its attention."""

    def __init__(self, layer: Any, config: Any, *, packed: bool) -> None:
        self.layer = layer
        attention, mlp = layer.self_attn, layer.mlp
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.qkv = _pack([attention.q_proj, attention.k_proj, attention.v_proj]) if packed else None
        self.gate_up = _pack([mlp.gate_proj, mlp.up_proj]) if packed else None

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """Query, key and value heads (n, W, heads, head_dim), not rotated yet."""
        attention = self.layer.self_attn
        normed = _norm(self.layer.input_layernorm, states)
        if self.qkv is None:
            parts = (attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed))
            heads = torch.cat(parts, dim=-1)
        else:
            heads = self.qkv(normed)
        return heads.view(*states.shape[:2], -1, self.head_dim)

    def finish(self, states: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Output projection and feed-forward part, each added to what came in."""
        mlp = self.layer.mlp
        states = states + self.layer.self_attn.o_proj(attended)
        normed = _norm(self.layer.post_attention_layernorm, states)
        if self.gate_up is None:
            gate, up = mlp.gate_proj(normed), mlp.up_proj(normed)
        else:
            gate, up = self.gate_up(normed).chunk(2, dim=-1)
        result: torch.Tensor = states + mlp.down_proj(mlp.act_fn(gate) * up)
        return result


def _norm(norm: Any, states: torch.Tensor) -> torch.Tensor:
    """Root mean square norm; other types than float32 go through the stock module, which computes in float32."""
    if states.dtype == torch.float32:
        return rms_norm(states, (states.shape[-1],), norm.weight, norm.variance_epsilon)
    normed: torch.Tensor = norm(states)
    return normed


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions for (n, W, heads, head_dim)."""
    return heads * cos + heads.roll(heads.shape[-1] // 2, -1) * sin


def _attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Attention of (n, W, heads, head_dim) queries with the query heads of a group folded into rows.

    `keys`, `values` (n, key-value heads, T, head_dim); `bias` (n, 1, group * W, T). Returns (n, W, hidden).
    """
    count, width, heads, size = query.shape
    shared = keys.shape[1]
    groups = heads // shared
    rows = query.view(count, width, shared, groups, size).permute(0, 2, 3, 1, 4).reshape(count, shared, -1, size)
    out = scaled_dot_product_attention(rows, keys, values, attn_mask=bias)
    return out.view(count, shared, groups, width, size).permute(0, 3, 1, 2, 4).reshape(count, width, heads * size)


def _pack(parts: list[nn.Linear]) -> nn.Linear:
    """One linear layer that computes several at once; theirs become views of its weights."""
    weight = torch.cat([part.weight for part in parts])
    whole = nn.Linear(weight.shape[1], weight.shape[0], bias=parts[0].bias is not None, device="meta")
    whole.weight = nn.Parameter(weight, requires_grad=False)
    sizes = [part.weight.shape[0] for part in parts]
    for part, view in zip(parts, torch.split(weight, sizes), strict=True):
        part.weight = nn.Parameter(view, requires_grad=False)
    if parts[0].bias is not None:
        bias = torch.cat([part.bias for part in parts])
        whole.bias = nn.Parameter(bias, requires_grad=False)
        for part, view in zip(parts, torch.split(bias, sizes), strict=True):
            part.bias = nn.Parameter(view, requires_grad=False)
    return whole
