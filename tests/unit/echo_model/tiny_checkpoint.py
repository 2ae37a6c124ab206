"""Tiny random models, and checkpoint folders written from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from echo_model.images import ImageConfig

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|MASK|>")
IM_END, IMAGE_PAD, MASK = 1, 4, 5
VOCABULARY = 300


def tiny_tokenizer() -> Tokenizer:
    """Byte-level tokenizer: the special tokens, then one token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def tiny_config(*, kv_heads: int = 2, heads: int = 4, layers: int = 2, tied: bool = True, width: int = 16) -> Any:
    """A Qwen2.5-VL configuration of a few thousand weights; `width` is the head dimension."""
    half = width // 2
    sections = [half - 2 * (half // 3), half // 3, half // 3]
    hidden = heads * width
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": 2 * hidden,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections},
            "tie_word_embeddings": tied,
            "bos_token_id": None,
            "eos_token_id": IM_END,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 48,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [0, 1],
        },
        image_token_id=IMAGE_PAD,
        video_token_id=VOCABULARY - 1,
        vision_start_token_id=2,
        vision_end_token_id=3,
        tie_word_embeddings=tied,
    )


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32, **shape: Any) -> Any:
    """A random model whose answers vary: weights are drawn wider than for training."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(tiny_config(**shape))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.25 if "embed_tokens" in name or "lm_head" in name else 0.12)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
    random: Any = model
    return random.to(dtype).eval()


def write_checkpoint(folder: Path, model: Any, *, edge: int = 56, generation: dict[str, Any] | None = None) -> Path:
    """Write a checkpoint folder as `load_model` expects it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    image_config = ImageConfig(image_size=edge, image_mean=(0.5, 0.5, 0.5), image_std=(0.25, 0.25, 0.25))
    (folder / "preprocessor_config.json").write_text(json.dumps(image_config.to_json()))
    settings = {"eos_token_id": IM_END, "block_length": 4, "gen_length": 32, "instruction": "Read."}
    (folder / "generation_config.json").write_text(json.dumps(settings | (generation or {})))
    return folder
