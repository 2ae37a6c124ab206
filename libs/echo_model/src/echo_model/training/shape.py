"""Shape of the demonstration model and its fixed prompt: what every training stage shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from echo_model.data.tokenizer import EOS, IMAGE, MASK, PAD, special_ids
from echo_model.images import ImageConfig
from echo_model.prompt import INSTRUCTIONS, build_prompt

IMAGE_SIZE: Final = 168
QUESTION: Final = INSTRUCTIONS["en"]
IMAGES: Final = ImageConfig(image_size=IMAGE_SIZE)
GRID: Final = IMAGE_SIZE // IMAGES.patch_size
VISUAL_TOKENS: Final = (GRID // IMAGES.merge_size) ** 2
TEXT_HIDDEN: Final = 256


def demo_config(tokenizer: Tokenizer, layers: int = 4) -> Any:
    """Configuration of the 5.7 M parameter demonstration model (``Qwen2_5_VLConfig``), or with fewer text layers."""
    ids = special_ids(tokenizer)
    depth = 4
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": TEXT_HIDDEN,
            "intermediate_size": 704,
            "num_hidden_layers": layers,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": ids[EOS],
            "pad_token_id": ids[PAD],
        },
        vision_config={
            "depth": depth,
            "hidden_size": 192,
            "num_heads": 6,
            "intermediate_size": 512,
            "out_hidden_size": TEXT_HIDDEN,
            "patch_size": IMAGES.patch_size,
            "temporal_patch_size": IMAGES.temporal_patch_size,
            "spatial_merge_size": IMAGES.merge_size,
            "window_size": 112,
            "fullatt_block_indexes": list(range(depth)),
            "in_channels": 3,
        },
        image_token_id=ids[IMAGE],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def new_model(tokenizer: Tokenizer, seed: int, layers: int = 4) -> Any:
    """A ``Qwen2_5_VLForConditionalGeneration`` in float32 with fresh weights drawn from ``seed``."""
    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(demo_config(tokenizer, layers))


@dataclass(frozen=True)
class Layout:
    """The constant prompt: its token ids (P,), where the image stands in it, and positions for prompt + response."""

    prompt: torch.Tensor
    image_at: torch.Tensor
    positions: torch.Tensor
    eos: int
    pad: int
    mask: int

    @property
    def length(self) -> int:
        """Number of prompt tokens."""
        return int(self.prompt.shape[0])


def prompt_layout(model: Any, tokenizer: Tokenizer, max_response: int = 512) -> Layout:
    """Lay out the prompt of one image; ``positions`` is int64 (3, P + max_response), as decoding computes them."""
    ids = special_ids(tokenizer)
    prompt = torch.tensor(build_prompt(tokenizer, [VISUAL_TOKENS]))
    full = torch.cat([prompt, torch.full((max_response,), ids[EOS])])[None]
    grid = torch.tensor([[1, GRID, GRID]])
    kinds = (full == ids[IMAGE]).int()
    positions, _ = model.model.get_rope_index(full, mm_token_type_ids=kinds, image_grid_thw=grid)
    image_at = (prompt == ids[IMAGE]).nonzero()[:, 0]
    return Layout(prompt, image_at, positions[:, 0], ids[EOS], ids[PAD], ids[MASK])


def grey_patches(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Cut grey images (B, IMAGE_SIZE, IMAGE_SIZE) to (B * patches, 196) in 0..1, in preprocessing's patch order."""
    patch, merge, cells = IMAGES.patch_size, IMAGES.merge_size, GRID // IMAGES.merge_size
    cut = images.reshape(-1, cells, merge, patch, cells, merge, patch).transpose(0, 1, 4, 2, 5, 3, 6)
    return torch.from_numpy(np.ascontiguousarray(cut, dtype=np.float32).reshape(-1, patch * patch) / np.float32(255))


def encode_grey(visual: Any, images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Run the vision tower on grey images uint8 (B, IMAGE_SIZE, IMAGE_SIZE): (B, VISUAL_TOKENS, TEXT_HIDDEN).

    A grey image fills three channels and two time steps with the same values, so the patch embedding's kernel is
    summed over these first: the same result as ``preprocess`` and the stock path, at a sixth of its cost.
    """
    embed = visual.patch_embed
    weight = embed.proj.weight.sum(2).flatten(2)
    std, mean = torch.tensor(IMAGES.image_std)[None, :, None], torch.tensor(IMAGES.image_mean)[None, :, None]
    kernel, offset = (weight / std).sum(1), -(weight * mean / std).sum((1, 2))
    embed.forward = lambda patches: functional.linear(patches, kernel, offset)
    try:
        grid = torch.tensor([[1, GRID, GRID]] * images.shape[0])
        features: torch.Tensor = visual(grey_patches(images), grid_thw=grid).pooler_output
    finally:
        del embed.forward
    return features.view(images.shape[0], VISUAL_TOKENS, -1)
