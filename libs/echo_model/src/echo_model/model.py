"""Checkpoint folder in, model in memory out: safetensors only, no foreign code, every tensor accounted for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from echo_model.errors import CheckpointError, SettingsError
from echo_model.images import ImageConfig

_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_MODEL_TYPE = "qwen2_5_vl"
# Older files keep the vision tower and the language model side by side at the top; newer ones below `model.`.
_KEY_MAP = (
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(?!visual\.|language_model\.)"), "model.language_model."),
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
)
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
_HEAD, _EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to decode, with all that belongs to it.

    `model` is a stock `Qwen2_5_VLForConditionalGeneration` in eval mode. `generation_config` is the checkpoint's file
    as a dictionary, with `mask_token_id` (int) and `eos_token_ids` (list of int) always filled in. `revision` is the
    first 12 hex digits of the SHA-256 of the weights.
    """

    model: Any
    tokenizer: Tokenizer
    image_config: ImageConfig
    generation_config: dict[str, Any]
    model_id: str
    revision: str
    path: Path

    @property
    def mask_token_id(self) -> int:
        """The token that stands for "not decoded yet"."""
        return int(self.generation_config["mask_token_id"])

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a report."""
        return tuple(self.generation_config["eos_token_ids"])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.lm_head.weight.device
        return device


def load_model(
    path: str | Path, device: str | torch.device = "cpu", dtype: str | torch.dtype | None = None
) -> LoadedModel:
    """Load a checkpoint folder. Takes no network and runs no code of the checkpoint.

    `dtype` defaults to float32 on a CPU and to the checkpoint's own type elsewhere. Raises CheckpointError naming the
    file or tensor that is wrong.
    """
    folder = Path(path)
    config = read_config(folder)
    image_config = ImageConfig.from_file(folder / "preprocessor_config.json")
    tokenizer = read_tokenizer(folder)
    files = weight_files(folder)
    target = _device(device)
    wanted = _wanted_dtype(dtype, target, config)
    model = _build(config)
    _fill(model, _read_tensors(files, wanted, target), tied=bool(config.tie_word_embeddings))
    _restore_buffers(model, config, target)
    model.requires_grad_(False)
    model.eval()
    generation = generation_config(folder, config, tokenizer)
    known, held = tokenizer.get_vocab_size(), config.text_config.vocab_size
    if known > held:
        raise CheckpointError(f"tokenizer.json knows {known} tokens, the weights only {held}")
    model_id = str(generation.get("model_id") or folder.resolve().name)
    return LoadedModel(model, tokenizer, image_config, generation, model_id, revision_of(files), folder)


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


def _build(config: Any) -> Any:
    """The stock modules without memory behind their weights."""
    try:
        with torch.device("meta"):
            return Qwen2_5_VLForConditionalGeneration(config)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"config.json describes no model that can be built: {error}") from error


def _read_tensors(files: list[Path], dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
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


def _fill(model: Any, tensors: dict[str, torch.Tensor], *, tied: bool) -> None:
    """Put the tensors into the modules after checking that names and shapes agree one to one."""
    if tied and _EMBEDDING in tensors:
        head = tensors.setdefault(_HEAD, tensors[_EMBEDDING])
        if head is not tensors[_EMBEDDING] and not torch.equal(head, tensors[_EMBEDDING]):
            raise CheckpointError(f"tensor {_HEAD} differs from the embedding, though the config ties them")
        tensors[_HEAD] = tensors[_EMBEDDING]
    _compare(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    model.load_state_dict(tensors, strict=True, assign=True)
    if tied:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight


def refuse_wrong_tensors(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless names and shapes (today's layout) are exactly those of the configuration."""
    tied = config.tie_word_embeddings and _EMBEDDING in shapes
    _compare(_build(config), {_HEAD: shapes[_EMBEDDING], **shapes} if tied else shapes)


def _compare(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    _refuse("missing", sorted(expected.keys() - shapes.keys()))
    _refuse("not part of this architecture", sorted(shapes.keys() - expected.keys()))
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise CheckpointError(f"tensor {name} has shape {shapes[name]}, the config wants {shape}")


def _refuse(what: str, names: list[str]) -> None:
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise CheckpointError(f"tensor {names[0]} is {what}{more}")


def _restore_buffers(model: Any, config: Any, device: torch.device) -> None:
    """Give the rotary tables values: no checkpoint carries them, and the meta build left them empty.

    They depend on the configuration only, so they are taken from a twin without layers.
    """
    raw = config.to_dict()
    raw["text_config"] |= {"num_hidden_layers": 0, "layer_types": [], "vocab_size": 1} | dict.fromkeys(_TOKENS)
    raw["vision_config"] |= {"depth": 0, "out_hidden_size": 1}
    twin = dict(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(raw)).named_buffers())
    for name, buffer in list(model.named_buffers()):
        if not buffer.is_meta:
            continue
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, twin[name].to(device))


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


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"device {name!r} is unknown; use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"device {name!r} was asked for, but no CUDA device can be used here")
    return device


def _wanted_dtype(dtype: str | torch.dtype | None, device: torch.device, config: Any) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise SettingsError(f"dtype {dtype!r} is unknown; allowed: {', '.join(_DTYPES)}")
        return _DTYPES[dtype]
    own = config.dtype
    return own if device.type != "cpu" and isinstance(own, torch.dtype) else torch.float32


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
