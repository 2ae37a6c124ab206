"""What is in a checkpoint folder, told without loading the weights."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from echo_model.checkpoint_files import (
    generation_config,
    read_config,
    read_tokenizer,
    revision_of,
    tensor_shapes,
    weight_files,
)
from echo_model.domain_score import FILE_NAME as DOMAIN_FILE
from echo_model.images import ImageConfig
from echo_model.model import refuse_wrong_tensors


def inspect_checkpoint(folder: Path) -> dict[str, Any]:
    """Architecture, weights, settings and identity as plain values. Raises CheckpointError as loading would."""
    config = read_config(folder)
    tokenizer = read_tokenizer(folder)
    image_config = ImageConfig.from_file(folder / "preprocessor_config.json")
    files = weight_files(folder)
    tensors = tensor_shapes(files)
    refuse_wrong_tensors(config, {name: shape for name, (shape, _) in tensors.items()})
    text, vision = config.text_config, config.vision_config
    settings = generation_config(folder, config, tokenizer)
    return {
        "model_id": settings.get("model_id") or folder.resolve().name,
        "revision": revision_of(files),
        "files": [file.name for file in files],
        "bytes": sum(file.stat().st_size for file in files),
        "parameters": sum(prod(shape) for shape, _ in tensors.values()),
        "dtypes": sorted({dtype for _, dtype in tensors.values()}),
        "language_model": {
            "layers": text.num_hidden_layers,
            "hidden_size": text.hidden_size,
            "query_heads": text.num_attention_heads,
            "key_value_heads": text.num_key_value_heads,
            "vocabulary": text.vocab_size,
            "tied_embeddings": bool(config.tie_word_embeddings),
        },
        "vision_tower": {"layers": vision.depth, "hidden_size": vision.hidden_size, "heads": vision.num_heads},
        "images": image_config.to_json(),
        "generation": settings,
        "out_of_domain_statistics": (folder / DOMAIN_FILE).is_file(),
        "tensors": {name: {"shape": list(shape), "dtype": dtype} for name, (shape, dtype) in tensors.items()},
    }
