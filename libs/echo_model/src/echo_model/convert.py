"""`echo-model convert`: a checkpoint in any layout that the loader knows, written again in today's layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from echo_model.checkpoint_files import read_config, tensor_shapes, weight_files
from echo_model.domain_score import FILE_NAME
from echo_model.errors import CheckpointError, SettingsError
from echo_model.model import LoadedModel, load_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED = {"F32": "float32", "F64": "float32", "BF16": "bfloat16", "F16": "float16"}
# Taken over as they are. The domain file holds statistics of the vision tower, which keeps its weights.
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "MODEL_CARD.md",
    "README.md",
    "LICENSE",
    FILE_NAME,
)
SHARD_BYTES = 4_000_000_000


def convert(source: Path, target: Path, dtype: str | None = None, *, shard_bytes: int = SHARD_BYTES) -> LoadedModel:
    """Load `source` and write it to the new folder `target`; returns the loaded model.

    `dtype` is float32, bfloat16 or float16; by default the type in which most weights of the source are stored. Weights
    of more than `shard_bytes` are split into several files with an index. Nothing is left behind on failure. Raises
    CheckpointError for what the loader refuses and for a target that exists, SettingsError for an unknown type.
    """
    if dtype is not None and dtype not in DTYPES:
        raise SettingsError(f"dtype {dtype!r} is unknown; allowed: {', '.join(DTYPES)}")
    if target.exists():
        raise CheckpointError(f"{target} exists already; a conversion writes a new folder")
    if not target.absolute().parent.is_dir():
        raise CheckpointError(f"{target}: its parent folder does not exist")
    read_config(source)  # refuses other architectures before anything large is read
    kind = dtype or _stored_dtype(source)
    loaded = load_model(source, "cpu", DTYPES[kind])
    part = target.with_name(f"{target.name}.part")
    part.mkdir()
    try:
        _write_weights(loaded.model, part, shard_bytes)
        _write_settings(loaded, part, kind)
        for name in _COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, part / name)
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return loaded


def _stored_dtype(source: Path) -> str:
    """The type that holds most weights."""
    counts: dict[str, int] = {}
    for shape, kind in tensor_shapes(weight_files(source)).values():
        counts[kind] = counts.get(kind, 0) + int(torch.Size(shape).numel())
    return _STORED.get(max(counts, key=lambda kind: counts[kind]), "float32") if counts else "float32"


def _write_weights(model: Any, folder: Path, shard_bytes: int) -> None:
    """`model.safetensors`, or numbered shards and their index. A head tied to the embedding is left out."""
    tensors: dict[str, torch.Tensor] = model.state_dict()
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    shards = list(_shards(tensors, shard_bytes))
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
    }
    _write_json(folder / "model.safetensors.index.json", index)


def _shards(tensors: dict[str, torch.Tensor], shard_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors in order, cut before the one that would make a file larger than `shard_bytes`."""
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    yield shard


def _write_settings(loaded: LoadedModel, folder: Path, dtype: str) -> None:
    config = loaded.model.config.to_dict()
    config |= {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "dtype": dtype,
        "mask_token_id": loaded.mask_token_id,
    }
    generation = {name: value for name, value in loaded.generation_config.items() if name != "eos_token_ids"}
    generation |= {"model_id": loaded.model_id, "eos_token_id": list(loaded.eos_token_ids)}
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation)
    _write_json(folder / "preprocessor_config.json", loaded.image_config.to_json())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
