"""Checkpoint folder in, model in memory out: safetensors only, no foreign code, every tensor accounted for."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from echo_model.checkpoint_files import Checkpoint, open_checkpoint
from echo_model.errors import CheckpointError, SettingsError
from echo_model.images import ImageConfig

_log = logging.getLogger(__name__)
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
_HEAD, _EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to decode, with all that belongs to it.

    `model` is a stock `Qwen2_5_VLForConditionalGeneration` in eval mode. `generation_config` is the checkpoint's file
    as a dictionary, with `mask_token_id` (int) and `eos_token_ids` (list of int) always filled in. `revision` is the
    first 12 hex digits of the SHA-256 of the weights. `notices` say what of the checkpoint was passed over.
    `mask_added`: the mask token is new, see `load_model`.
    """

    model: Any
    tokenizer: Tokenizer
    image_config: ImageConfig
    generation_config: dict[str, Any]
    model_id: str
    revision: str
    path: Path
    notices: tuple[str, ...] = ()
    mask_added: bool = False

    @property
    def mask_token_id(self) -> int:
        """The token that stands for "not decoded yet"."""
        return int(self.generation_config["mask_token_id"])

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a report."""
        return tuple(self.generation_config["eos_token_ids"])

    @property
    def max_images(self) -> int | None:
        """How many images of a study the checkpoint was trained to read together; None: it does not say."""
        limit: int | None = self.generation_config.get("max_images")
        return limit

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.lm_head.weight.device
        return device


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    *,
    add_mask: bool = False,
) -> LoadedModel:
    """Load a checkpoint folder. Takes no network and runs no code of the checkpoint.

    `dtype` defaults to float32 on a CPU and to the checkpoint's own type elsewhere. Weights that are stored in the
    wanted type stay mapped from the files when the device is the CPU, so do not change the files while the model lives;
    others are converted one by one, so that never more than one tensor is held twice. `add_mask`: a checkpoint without
    a mask token gets one on an unused row of its embedding, for training. Raises CheckpointError naming the file or
    tensor that is wrong.
    """
    checkpoint = open_checkpoint(path, add_mask=add_mask)
    for notice in checkpoint.notices:
        _log.warning("%s: %s", checkpoint.model_id, notice)
    target = _device(device)
    model = empty_model(checkpoint)
    _fill(model, checkpoint.weights.read(_wanted_dtype(dtype, target, checkpoint), target))
    _restore_buffers(model, checkpoint.config, target)
    model.requires_grad_(False)
    model.eval()
    return LoadedModel(
        model,
        checkpoint.tokenizer,
        checkpoint.image_config,
        checkpoint.generation_config,
        checkpoint.model_id,
        checkpoint.weights.revision(),
        checkpoint.path,
        checkpoint.notices,
        checkpoint.mask_added,
    )


def empty_model(checkpoint: Checkpoint) -> Any:
    """The stock modules without memory behind their weights.

    Raises CheckpointError unless names and shapes of the stored tensors are exactly those of the modules.
    """
    model = _build(checkpoint.config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    shapes = checkpoint.weights.shapes
    if checkpoint.config.tie_word_embeddings and _EMBEDDING in shapes:
        shapes.setdefault(_HEAD, shapes[_EMBEDDING])
    missing = sorted(expected.keys() - shapes.keys())
    if missing == [_HEAD]:
        raise CheckpointError(f"tensor {_HEAD} is missing, though config.json has tie_word_embeddings false")
    _refuse("missing", missing)
    _refuse("not part of this architecture", sorted(shapes.keys() - expected.keys()))
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise CheckpointError(f"tensor {name} has shape {shapes[name]}, the config wants {shape}")
    return model


def _build(config: Any) -> Any:
    """The stock modules without memory behind their weights."""
    try:
        with torch.device("meta"):
            return Qwen2_5_VLForConditionalGeneration(config)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"config.json describes no model that can be built: {error}") from error


def _fill(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Put the tensors into the modules; a head that is tied to the embedding becomes the same parameter."""
    tied = bool(model.config.tie_word_embeddings)
    if tied:
        embedding = tensors[_EMBEDDING]
        head = tensors.setdefault(_HEAD, embedding)
        if head is not embedding and not torch.equal(head, embedding):
            raise CheckpointError(f"tensor {_HEAD} differs from the embedding, though the config ties them")
        tensors[_HEAD] = embedding
    model.load_state_dict(tensors, strict=True, assign=True)
    if tied:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight


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


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"device {name!r} is unknown; use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"device {name!r} was asked for, but no CUDA device can be used here")
    return device


def _wanted_dtype(dtype: str | torch.dtype | None, device: torch.device, checkpoint: Checkpoint) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise SettingsError(f"dtype {dtype!r} is unknown; allowed: {', '.join(DTYPES)}")
        return DTYPES[dtype]
    return torch.float32 if device.type == "cpu" else checkpoint.weights.main_dtype
