"""Low-rank adapters on the language model's linear layers (by peft), and their merging into plain weights."""

from __future__ import annotations

from typing import Any, Final

import torch

_LAYERS: Final = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


def add_adapters(model: Any, rank: int, seed: int) -> Any:
    """Freeze the model and put adapters of ``rank`` beside its linear layers, in place. They change nothing at first.

    Returns peft's handle for `merge_adapters`; the model itself is used as before. Needs the package ``peft`` (extra
    ``train``); raises ModuleNotFoundError without it.
    """
    from peft import LoraConfig, LoraModel

    torch.manual_seed(seed)
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_LAYERS, lora_dropout=0.0)
    return LoraModel(model, settings, "default")


def merge_adapters(handle: Any) -> Any:
    """Add the adapters to the weights and take them away: a model with the names and shapes it had before."""
    return handle.merge_and_unload()
