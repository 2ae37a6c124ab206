"""`echo-model convert`: a checkpoint in any layout that the loader knows, written again in today's layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from echo_model.checkpoint_files import open_checkpoint
from echo_model.domain_score import FILE_NAME
from echo_model.errors import CheckpointError, SettingsError
from echo_model.guards import LEXICON_FILE
from echo_model.json_files import read_json
from echo_model.model import DTYPES, LoadedModel, load_model
from echo_model.settings import GenerationSettings
from echo_model.weights import INDEX, SINGLE

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Taken over as they are. The domain file holds statistics of the vision tower, which keeps its weights.
_COPIED = (
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "MODEL_CARD.md",
    "README.md",
    "LICENSE",
    FILE_NAME,
    LEXICON_FILE,
)
SHARD_BYTES = 4_000_000_000


def convert(
    source: Path,
    target: Path,
    dtype: str | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
    generation: Mapping[str, Any] | None = None,
    max_pixels: int | None = None,
) -> LoadedModel:
    """Load `source` and write it to the new folder `target`; returns the loaded model.

    `dtype` is float64, float32, bfloat16 or float16; by default the type in which most weights of the source are
    stored. Weights of more than `shard_bytes` are split into several files with an index. `generation` replaces
    settings of `generation_config.json` (block_length, instruction, ...), `max_pixels` the largest picture. The result
    is read back and compared before it gets its name; nothing is left behind on failure. Raises CheckpointError for
    what the loader refuses and for a target that exists, SettingsError for an unknown type or setting.
    """
    if dtype is not None and dtype not in DTYPES:
        raise SettingsError(f"dtype {dtype!r} is unknown; allowed: {', '.join(DTYPES)}")
    if target.exists():
        raise CheckpointError(f"{target} exists already; a conversion writes a new folder")
    if not target.absolute().parent.is_dir():
        raise CheckpointError(f"{target}: its parent folder does not exist")
    kind = _NAMES[open_checkpoint(source).weights.main_dtype] if dtype is None else dtype
    loaded = load_model(source, "cpu", kind)
    settings = loaded.generation_config | dict(generation or {})
    settings |= {"model_id": loaded.model_id, "eos_token_id": list(loaded.eos_token_ids)}
    GenerationSettings().rules(settings)  # refuses what could not be decoded with
    images = loaded.image_config if max_pixels is None else replace(loaded.image_config, max_pixels=max_pixels)
    loaded = replace(loaded, generation_config=settings, image_config=images)
    part = target.with_name(f"{target.name}.part")
    part.mkdir()
    try:
        write_folder(loaded, source, part, kind, shard_bytes)
        _read_back(part, loaded)
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return loaded


def write_folder(loaded: LoadedModel, source: Path, folder: Path, dtype: str, shard_bytes: int = SHARD_BYTES) -> None:
    """Write everything that belongs to a model into a folder that is there; `dtype` is that of its weights.

    `source`: the checkpoint it came from, whose tokenizer files and texts are taken over.
    """
    _write_weights(loaded.model, folder, shard_bytes)
    _write_settings(loaded, folder, dtype)
    _write_tokenizer(loaded, source, folder)
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write_weights(model: Any, folder: Path, shard_bytes: int) -> None:
    """`model.safetensors`, or numbered shards and their index. A head tied to the embedding is left out."""
    tensors = _tensors(model)
    shards = list(_shards(tensors, shard_bytes))
    if len(shards) == 1:
        save_file(shards[0], folder / SINGLE, metadata={"format": "pt"})
        return
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
    }
    _write_json(folder / INDEX, index)


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    """What is stored of a model."""
    tensors: dict[str, torch.Tensor] = model.state_dict()
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return tensors


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
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation)
    _write_json(folder / "preprocessor_config.json", loaded.image_config.to_json())


def _write_tokenizer(loaded: LoadedModel, source: Path, folder: Path) -> None:
    """`tokenizer.json` as it is, or as built from older files; its settings without the naming of code."""
    if (source / "tokenizer.json").is_file() and not loaded.mask_added:
        shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    else:
        loaded.tokenizer.save(str(folder / "tokenizer.json"))
    settings = source / "tokenizer_config.json"
    if settings.is_file():
        values = {name: value for name, value in read_json(settings).items() if name != "auto_map"}
        _write_json(folder / settings.name, values)


def _read_back(folder: Path, wanted: LoadedModel) -> None:
    """Refuse a result that does not load as what was written: a full disk or bad memory must not go unnoticed."""
    got = load_model(folder, "cpu", wanted.model.lm_head.weight.dtype)
    expected, found = wanted.model.state_dict(), got.model.state_dict()
    for name, tensor in expected.items():
        # Compared as bits: a NaN in the source is carried over, and it is not equal to itself.
        if not torch.equal(tensor.view(torch.uint8), found[name].view(torch.uint8)):
            raise CheckpointError(f"tensor {name} was read back otherwise than it was written")
    same = {
        "generation settings": wanted.generation_config.items() <= got.generation_config.items(),
        "image settings": wanted.image_config == got.image_config,
        "tokenizer": wanted.tokenizer.to_str() == got.tokenizer.to_str(),
    }
    for what, equal in same.items():
        if not equal:
            raise CheckpointError(f"the {what} were read back otherwise than written")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
