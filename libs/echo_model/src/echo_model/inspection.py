"""What is in a checkpoint folder, told without loading the weights."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from echo_model.checkpoint_files import open_checkpoint
from echo_model.domain_score import FILE_NAME as DOMAIN_FILE
from echo_model.guards import load_lexicon
from echo_model.model import empty_model
from echo_model.weights import layout_of


def inspect_checkpoint(folder: Path) -> dict[str, Any]:
    """Architecture, weights, settings and identity as plain values. Raises CheckpointError as loading would."""
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
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": tensor.dtype} for name, tensor in weights.tensors.items()
        },
    }
