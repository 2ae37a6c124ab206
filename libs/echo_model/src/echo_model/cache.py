"""Keys and values of one sequence in memory that is allocated once."""

from __future__ import annotations

from typing import Any

import torch


class BlockCache:
    """Speaks the part of the transformers cache protocol that the Qwen2.5-VL layers use (`update`).

    Rows written by a forward pass lie behind the committed ones and count only after `advance`; the next pass
    overwrites the rest. So committing a block, or throwing noisy rows away, copies nothing.
    """

    is_compileable = False

    def __init__(self, config: Any, capacity: int, like: torch.Tensor) -> None:
        """`config`: the text configuration; `capacity`: tokens; `like`: a tensor of the wanted type and device."""
        heads, head_dim = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, 2, 1, heads, capacity, head_dim)
        self._memory = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new rows (1, heads, rows, head_dim) behind the committed ones; return all up to and with them."""
        end = self.length + key_states.shape[2]
        keys, values = self._memory[layer_idx]
        keys[:, :, self.length : end] = key_states
        values[:, :, self.length : end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of committed rows."""
        return self.length

    def advance(self, rows: int) -> None:
        """Commit the first `rows` of the last pass."""
        self.length += rows
