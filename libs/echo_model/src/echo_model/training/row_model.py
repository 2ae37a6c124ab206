"""The model as a function of a row: one module whose forward pass is all that a training step does with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from echo_model.training.attention import TILE, row_mask, use_rows, wants_tiles
from echo_model.training.rows import Row
from echo_model.vision_tower import vision_features


@dataclass(frozen=True)
class Pictures:
    """What the model sees of a row: patches (patches, patch_dim) with their grids, or the tower's output (V, H)."""

    patches: torch.Tensor | None = None
    grids: torch.Tensor | None = None
    features: torch.Tensor | None = None


class RowModel(torch.nn.Module):
    """A `Qwen2_5_VLForConditionalGeneration` that takes rows.

    Everything goes through `forward`, so that sharded weights are gathered by its hooks. ``half``: compute in bfloat16;
    weights that learn are kept in float32.
    """

    def __init__(self, model: Any, *, half: bool = False, train_vision: bool = False) -> None:
        super().__init__()
        self.model = model
        self._half, self._train_vision = half, train_vision
        use_rows(model)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def checkpoint_activations(self) -> None:
        """Compute activations inside the layers again in the backward pass instead of keeping them."""
        # the older name warns in newer releases of transformers, which have the other one
        enable = (
            getattr(self.model, "activation_checkpointing_enable", None) or self.model.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})

    def computing(self) -> torch.autocast:
        """The context that the model's parts have to be called in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._half)

    def forward(self, row: Row, pictures: Pictures) -> torch.Tensor:
        """Logits (N, vocabulary) at the places that are learnt from."""
        device = self.device
        if wants_tiles(len(row.ids), device):
            row = row.padded(TILE)
        with self.computing():
            language = self.model.model.language_model
            words = language.embed_tokens(row.ids.to(device))
            features = self.see(pictures)[row.image_from.to(device)].to(words.dtype)
            embeds = words.index_copy(0, row.image_at.to(device), features)
            states = language(
                inputs_embeds=embeds[None],
                position_ids=row.positions.to(device)[:, None],
                attention_mask={"full_attention": row_mask(row.index, device)},
                use_cache=False,
            ).last_hidden_state[0]
            logits: torch.Tensor = self.model.lm_head(states[row.learn.to(device)])
        return logits

    def see(self, pictures: Pictures) -> torch.Tensor:
        """Visual tokens (V, H) of pictures, with gradients when the tower learns."""
        if pictures.features is not None:
            return pictures.features.to(self.device)
        visual = self.model.model.visual
        assert pictures.patches is not None
        assert pictures.grids is not None
        kind = visual.patch_embed.proj.weight.dtype
        with torch.set_grad_enabled(self._train_vision and torch.is_grad_enabled()), self.computing():
            return vision_features(visual, pictures.patches.to(self.device, kind), pictures.grids)


def together(some: Sequence[Pictures]) -> Pictures:
    """The pictures of several studies as those of a row."""
    if some[0].features is not None:
        return Pictures(features=torch.cat([one.features for one in some if one.features is not None]))
    return Pictures(
        torch.cat([one.patches for one in some if one.patches is not None]),
        torch.cat([one.grids for one in some if one.grids is not None]),
    )
