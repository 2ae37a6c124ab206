"""A small model with the demonstration model's layout, and stand-ins for its visual tokens."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLForConditionalGeneration

from echo_model.data.tokenizer import train_tokenizer
from echo_model.training.corpus import training_report
from echo_model.training.shape import QUESTION, TEXT_HIDDEN, VISUAL_TOKENS, Layout, demo_config, prompt_layout
from echo_model.training.text_stages import TextData
from echo_model.training.texts import tokenise

BLOCK = 8


@cache
def small_tokenizer() -> Tokenizer:
    return train_tokenizer([training_report(1, i).text for i in range(150)], QUESTION)


def small_model(seed: int = 0, spread: float = 0.09, tokenizer: Tokenizer | None = None) -> Any:
    """One thin layer in each half; a wide `spread` makes answers vary."""
    config = demo_config(tokenizer or small_tokenizer())
    text, vision = config.text_config, config.vision_config
    text.intermediate_size, text.num_hidden_layers, text.layer_types = 64, 1, text.layer_types[:1]
    vision.depth, vision.hidden_size, vision.num_heads, vision.intermediate_size = 1, 24, 2, 32
    vision.fullatt_block_indexes = [0]
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, spread)
    random: Any = model
    return random.float().eval()


class DrawnFeatures:
    """Visual tokens that are a function of the row."""

    def rows(self, rows: Any) -> torch.Tensor:
        draws = [torch.randn(VISUAL_TOKENS, TEXT_HIDDEN, generator=torch.Generator().manual_seed(int(r))) for r in rows]
        return torch.stack(draws)


@cache
def small_data() -> TextData:
    tokenizer = small_tokenizer()
    reports = [tokenise(tokenizer, training_report(1, index)) for index in range(64)]
    layout = prompt_layout(small_model(), tokenizer)
    return TextData(DrawnFeatures(), reports, layout)  # type: ignore[arg-type]  # stands in
    # DrawnFeatures has the one method of Features that training uses


def ending(layout: Layout, token: int) -> Layout:
    """The layout with another end token: random weights seldom choose the true one."""
    return Layout(layout.prompt, layout.image_at, layout.positions, token, layout.pad, layout.mask)
