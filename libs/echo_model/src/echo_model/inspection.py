"""What is in a checkpoint folder, told without loading the weights."""

from __future__ import annotations

from math import isqrt, prod
from pathlib import Path
from typing import Any

from echo_model.checkpoint_files import Checkpoint, open_checkpoint
from echo_model.domain_score import FILE_NAME as DOMAIN_FILE
from echo_model.errors import SettingsError
from echo_model.guards import load_lexicon
from echo_model.images import ImageConfig
from echo_model.memory import Load, predict
from echo_model.model import DTYPES, empty_model
from echo_model.prompt import build_prompt
from echo_model.settings import GenerationSettings
from echo_model.weights import layout_of


def inspect_checkpoint(
    folder: Path,
    *,
    dtype: str | None = None,
    slots: int = 8,
    images: int = 1,
    prompt_tokens: int | None = None,
    gen_length: int | None = None,
) -> dict[str, Any]:
    """Architecture, weights, settings, identity and the memory it will take, as plain values.

    The memory is that of weights in `dtype` (default: as stored) with `slots` requests at once, each with `images`
    pictures of the largest size, `prompt_tokens` in all (default: those pictures and the built-in question) and an
    answer of up to `gen_length` tokens (default: the checkpoint's). Raises CheckpointError as loading would, and
    SettingsError for an unknown type.
    """
    checkpoint = open_checkpoint(folder)
    empty_model(checkpoint)
    config, weights = checkpoint.config, checkpoint.weights
    text, vision = config.text_config, config.vision_config
    lexicon = load_lexicon(folder)
    return {
        "model_id": checkpoint.model_id,
        "revision": weights.revision(),
        "architecture": "Qwen2_5_VLForConditionalGeneration",
        "layout": layout_of(weights),
        "notices": list(checkpoint.notices),
        "files": [file.name for file in weights.files],
        "bytes": sum(file.stat().st_size for file in weights.files),
        "parameters": sum(prod(shape) for shape in weights.shapes.values()),
        "dtypes": sorted({tensor.dtype for tensor in weights.tensors.values()}),
        "language_model": {
            "layers": text.num_hidden_layers,
            "hidden_size": text.hidden_size,
            "query_heads": text.num_attention_heads,
            "key_value_heads": text.num_key_value_heads,
            "vocabulary": text.vocab_size,
            "tied_embeddings": bool(config.tie_word_embeddings),
        },
        "vision_tower": {"layers": vision.depth, "hidden_size": vision.hidden_size, "heads": vision.num_heads},
        "images": checkpoint.image_config.to_json(),
        "generation": checkpoint.generation_config,
        "out_of_domain_statistics": (folder / DOMAIN_FILE).is_file(),
        "lexicon_symbols": 0 if lexicon is None else len(lexicon.symbols),
        "memory": _memory(checkpoint, dtype, slots, images, prompt_tokens, gen_length),
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": tensor.dtype} for name, tensor in weights.tensors.items()
        },
    }


def _memory(
    checkpoint: Checkpoint,
    dtype: str | None,
    slots: int,
    images: int,
    prompt_tokens: int | None,
    gen_length: int | None,
) -> dict[str, Any]:
    """The prediction and what it is made for."""
    if dtype is not None and dtype not in DTYPES:
        raise SettingsError(f"dtype {dtype!r} is unknown; allowed: {', '.join(DTYPES)}")
    kind = checkpoint.weights.main_dtype if dtype is None else DTYPES[dtype]
    config, generation = checkpoint.config, checkpoint.generation_config
    rules = GenerationSettings(gen_length=gen_length).rules(generation)
    grid = largest_grid(checkpoint.image_config)
    if prompt_tokens is None:
        tokens = grid[0] * grid[1] // checkpoint.image_config.merge_size**2
        question = generation.get("instruction")
        prompt_tokens = len(build_prompt(checkpoint.tokenizer, [tokens] * images, instruction=question))
    load = Load(
        slots=slots,
        prompt_tokens=prompt_tokens,
        gen_length=rules.gen_length,
        block_length=rules.block_length,
        grids=(grid,) * images,
        item=kind.itemsize,
    )
    parameters = sum(prod(shape) for shape in checkpoint.weights.shapes.values())
    made_for = {
        "dtype": str(kind).removeprefix("torch."),
        "slots": slots,
        "prompt_tokens": prompt_tokens,
        "gen_length": rules.gen_length,
        "block_length": rules.block_length,
        "images": images,
        "patches": images * grid[0] * grid[1],
    }
    return made_for | predict(config, parameters, load).to_json()


def largest_grid(images: ImageConfig) -> tuple[int, int]:
    """Rows and columns of patches of the largest picture, as nearly square as it comes."""
    if images.image_size is not None:
        return images.image_size // images.patch_size, images.image_size // images.patch_size
    rows = max(1, isqrt(images.max_pixels) // images.factor)
    columns = max(1, images.max_pixels // images.factor**2 // rows)
    return rows * images.merge_size, columns * images.merge_size
