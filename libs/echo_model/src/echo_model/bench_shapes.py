"""Models of random weights to time: sizes, pictures and prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

SEED: Final = 11


@dataclass(frozen=True)
class Shape:
    """A model of random weights: language model, vision tower, picture in patches, prompt tokens, tokens decoded."""

    text: dict[str, Any]
    vision: dict[str, Any]
    grid: tuple[int, int]
    prompt_tokens: int
    tokens: int
    needs_cuda: bool = False


def _text(hidden: int, inner: int, layers: int, heads: int, kv: int, vocabulary: int, *, tied: bool) -> dict[str, Any]:
    half = hidden // heads // 2
    rope = {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [half - 2 * (3 * half // 8), *[3 * half // 8] * 2],
    }
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": 32_768,
        "rope_parameters": rope,
        "tie_word_embeddings": tied,
    }


def _tower(hidden: int, inner: int, depth: int, heads: int, out: int, whole: list[int]) -> dict[str, Any]:
    return {
        "depth": depth,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_heads": heads,
        "out_hidden_size": out,
        "window_size": 112,
        "fullatt_block_indexes": whole,
    }


# 3b and 7b have the sizes of Qwen2.5-VL, and a picture of 1484 x 1512 pixels as a radiograph fills it.
SHAPES = {
    "tiny": Shape(_text(128, 256, 2, 4, 2, 512, tied=True), _tower(32, 64, 2, 2, 128, [1]), (8, 8), 64, 64),
    "3b": Shape(
        _text(2048, 11_008, 36, 16, 2, 151_936, tied=True),
        _tower(1280, 3420, 32, 16, 2048, [7, 15, 23, 31]),
        (106, 108),
        2928,
        192,
        needs_cuda=True,
    ),
    "7b": Shape(
        _text(3584, 18_944, 28, 28, 4, 152_064, tied=False),
        _tower(1280, 3420, 32, 16, 3584, [7, 15, 23, 31]),
        (106, 108),
        2928,
        192,
        needs_cuda=True,
    ),
}


def random_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """The stock modules with weights drawn straight on the device."""
    config = Qwen2_5_VLConfig(
        text_config=shape.text | {"bos_token_id": None, "eos_token_id": 0},
        vision_config=shape.vision,
        image_token_id=1,
        video_token_id=2,
        vision_start_token_id=3,
        vision_end_token_id=0,
        tie_word_embeddings=shape.text["tie_word_embeddings"],
    )
    before = torch.get_default_dtype()
    torch.manual_seed(SEED)
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            model: Any = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return model.requires_grad_(False).eval()
