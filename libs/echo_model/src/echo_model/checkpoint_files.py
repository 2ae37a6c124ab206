"""The files of a checkpoint folder, read with suspicion: safetensors and JSON only, each error naming the file."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLConfig

from echo_model.errors import CheckpointError

_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_MODEL_TYPE = "qwen2_5_vl"
# Older files keep the vision tower and the language model side by side at the top; newer ones below `model.`.
_KEY_MAP = (
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(?!visual\.|language_model\.)"), "model.language_model."),
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
)


def read_config(folder: Path) -> Any:
    """The checkpoint's `config.json`; refuses other architectures and checkpoints that ask for their own code."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder")
    raw = _read_json(folder / "config.json")
    if raw.get("auto_map"):
        raise CheckpointError("config.json asks to run code of the checkpoint (auto_map); such code is never run")
    if raw.get("model_type") != _MODEL_TYPE:
        raise CheckpointError(
            f"config.json: model_type is {raw.get('model_type')!r}, only {_MODEL_TYPE!r} is supported"
        )
    try:
        config: Any = Qwen2_5_VLConfig.from_dict(raw)
    except Exception as error:  # transformers validates with several families of exceptions
        raise CheckpointError(f"config.json cannot be used: {error}") from error
    if "sliding_attention" in (config.text_config.layer_types or ()):
        raise CheckpointError("config.json asks for sliding-window attention, which block decoding does not support")
    return config


def read_tokenizer(folder: Path) -> Tokenizer:
    """The checkpoint's `tokenizer.json`."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError("tokenizer.json is missing: the tokenizer belongs beside the weights")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises plain Exception
        raise CheckpointError(f"tokenizer.json cannot be used: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sorted. Pickles are refused."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index.name} holds no weight_map")
        names = sorted(set(weight_map.values()))
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(f"{index.name} names {name!r}, which is no safetensors file of this folder")
            if not (folder / name).is_file():
                raise CheckpointError(f"{name} is missing, though {index.name} names it")
        return [folder / name for name in names]
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLED)
    if pickles:
        raise CheckpointError(f"{pickles[0]} is a pickle and is never opened; convert it to model.safetensors")
    raise CheckpointError("model.safetensors is missing")


def revision_of(files: list[Path]) -> str:
    """First 12 hex digits of the SHA-256 over the weights files in order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()[:12]


def canonical_key(key: str) -> str:
    """A tensor's name in today's layout."""
    for pattern, replacement in _KEY_MAP:
        renamed, count = pattern.subn(replacement, key)
        if count:
            return renamed
    return key


def tensor_shapes(files: list[Path]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every tensor by its name in today's layout, without reading the values."""
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in files:
        with _open(file) as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a mapping, has no __iter__
                part = tensors.get_slice(key)
                shapes[canonical_key(key)] = (tuple(part.get_shape()), str(part.get_dtype()))
    return shapes


def read_tensors(files: list[Path], dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    """All tensors by their name in today's layout, in the wanted type, on the device."""
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        with _open(file) as source:
            for key in source.keys():  # noqa: SIM118 - not a mapping, has no __iter__
                name = canonical_key(key)
                if name in tensors:
                    raise CheckpointError(f"tensor {key} is given twice")
                tensor = source.get_tensor(key)
                if not tensor.is_floating_point():
                    raise CheckpointError(f"tensor {key} holds {tensor.dtype}, not floating-point numbers")
                tensors[name] = tensor.to(device=device, dtype=dtype)
    return tensors


def generation_config(folder: Path, config: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """`generation_config.json` (may be absent) with the mask token and the end tokens filled in."""
    file = folder / "generation_config.json"
    generation: dict[str, Any] = _read_json(file) if file.is_file() else {}
    mask = generation.get("mask_token_id", getattr(config, "mask_token_id", None))
    if mask is None:
        mask = _tokenizer_mask(folder, tokenizer)
    if mask is None:
        raise CheckpointError("no mask token: neither config.json, generation_config.json nor the tokenizer names one")
    ends = generation.get("eos_token_id", config.text_config.eos_token_id)
    if ends is None:
        ends = tokenizer.token_to_id("<|im_end|>")
    ends = ends if isinstance(ends, list) else [ends]
    for name, number in [("mask_token_id", mask), *(("eos_token_id", end) for end in ends)]:
        if not isinstance(number, int) or not 0 <= number < config.text_config.vocab_size:
            raise CheckpointError(f"{name} {number!r} is no token of this model")
    return generation | {"mask_token_id": mask, "eos_token_ids": ends}


def _tokenizer_mask(folder: Path, tokenizer: Tokenizer) -> int | None:
    """The tokenizer's own mask token, else the one that block-diffusion checkpoints of this family use."""
    file = folder / "tokenizer_config.json"
    named = _read_json(file).get("mask_token") if file.is_file() else None
    content = named.get("content") if isinstance(named, dict) else named
    for token in (content, "<|MASK|>"):
        if isinstance(token, str) and (number := tokenizer.token_to_id(token)) is not None:
            return int(number)
    return None


def _open(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file.name} is damaged or no safetensors file: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file.name} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file.name} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file.name} holds no JSON object")
    return raw
