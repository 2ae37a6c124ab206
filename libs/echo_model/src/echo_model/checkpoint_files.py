"""A checkpoint folder described: configuration, tokenizer, pictures, generation settings, headers of the weights.

Only safetensors and JSON are read, no code of a checkpoint is ever run, and every error names the file or tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import Qwen2_5_VLConfig

from echo_model.errors import CheckpointError
from echo_model.images import ImageConfig
from echo_model.json_files import read_json, read_json_if_there
from echo_model.tokenizer_files import add_mask_token, mask_token, read_tokenizer
from echo_model.weights import Weights, find_weights

MODEL_TYPE, MODEL_CLASS = "qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"
_HEAD = "lm_head.weight"
# Which attention kernel a checkpoint was saved with is no property of its weights; flash-attention may not be there.
_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
# Files whose auto_map could name code of the checkpoint.
_CODE_NAMING = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
_END_TOKENS = ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds, the values of the weights excepted.

    `config` is a `Qwen2_5_VLConfig`; `generation_config` has `mask_token_id` (int) and `eos_token_ids` (list of int)
    filled in; `notices` say what was passed over. `mask_added`: the mask token is a new one, on a row of the embedding
    that was not used before.
    """

    path: Path
    config: Any
    tokenizer: Tokenizer
    image_config: ImageConfig
    generation_config: dict[str, Any]
    weights: Weights
    notices: tuple[str, ...]
    mask_added: bool = False

    @property
    def model_id(self) -> str:
        """The name that the checkpoint gives itself, else that of its folder."""
        return str(self.generation_config.get("model_id") or self.path.resolve().name)


def open_checkpoint(path: str | Path, *, add_mask: bool = False) -> Checkpoint:
    """Read all that belongs to a checkpoint except the values of its weights. Raises CheckpointError.

    `add_mask`: an autoregressive checkpoint, which has no mask token, gets one (see `add_mask_token`) instead of being
    refused.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder")
    raw = read_json(folder / "config.json")
    notices = _refuse_other_architectures(raw)
    image_config = ImageConfig.from_folder(folder)
    tokenizer = read_tokenizer(folder)
    weights = find_weights(folder)
    config = _configuration(raw, has_head=_HEAD in weights.tensors)
    _refuse_other_patches(image_config, config.vision_config)
    held = config.text_config.vocab_size
    known = max(tokenizer.get_vocab().values(), default=-1) + 1
    if known > held:
        raise CheckpointError(f"the tokenizer numbers {known} tokens, the weights hold only {held}")
    generation, added = _generation_config(folder, raw, tokenizer, held, add_mask=add_mask)
    notices += [*_notices_of_code(folder), *weights.notices]
    return Checkpoint(folder, config, tokenizer, image_config, generation, weights, tuple(notices), added)


def _refuse_other_architectures(raw: dict[str, Any]) -> list[str]:
    """Go on only with what the stock modules of Qwen2.5-VL can hold; returns what is worth knowing."""
    kind, classes = raw.get("model_type"), raw.get("architectures") or []
    stock = MODEL_CLASS in classes
    if kind != MODEL_TYPE and not stock:
        raise CheckpointError(
            f"config.json: model_type is {kind!r}, only {MODEL_TYPE!r} is supported"
            + (" and the code that the checkpoint brings for it is never run" if raw.get("auto_map") else "")
        )
    if raw.get("quantization_config"):
        raise CheckpointError(
            "config.json has a quantization_config: quantised weights are not read; use the checkpoint they came from"
        )
    notices = []
    if kind != MODEL_TYPE:
        notices.append(f"model_type {kind!r} is read as {MODEL_TYPE!r}, because architectures names {MODEL_CLASS}")
    elif classes and not stock:
        notices.append(f"the class {classes[0]!r} is read as {MODEL_CLASS}, because model_type is {MODEL_TYPE!r}")
    return notices


def _notices_of_code(folder: Path) -> list[str]:
    """One line for each file that names code, which stays unused."""
    naming = [name for name in _CODE_NAMING if read_json_if_there(folder / name).get("auto_map")]
    return [
        f"{name} names code of the checkpoint (auto_map); it is never run, the stock modules are used instead"
        for name in naming
    ]


def _configuration(raw: dict[str, Any], *, has_head: bool) -> Any:
    """The configuration without what asks for code or a certain attention kernel."""
    raw = {name: value for name, value in raw.items() if name not in ("auto_map", "model_type", *_ATTENTION)}
    for part in ("text_config", "vision_config"):
        if isinstance(raw.get(part), dict):
            raw[part] = {name: value for name, value in raw[part].items() if name not in ("auto_map", *_ATTENTION)}
    try:
        config: Any = Qwen2_5_VLConfig.from_dict(raw)
    except Exception as error:  # transformers validates with several families of exceptions
        raise CheckpointError(f"config.json cannot be used: {error}") from error
    if "sliding_attention" in (config.text_config.layer_types or ()):
        raise CheckpointError("config.json asks for sliding-window attention, which block decoding does not support")
    # Several releases of transformers left the setting out, or in a place of its own, and disagree on its default.
    # Where the file does not say it outright, a head in the weights is the better witness.
    outright = raw.get("tie_word_embeddings")
    config.tie_word_embeddings = outright if isinstance(outright, bool) else not has_head
    return config


def _refuse_other_patches(images: ImageConfig, vision: Any) -> None:
    """Pictures must be cut as the tower expects them."""
    for name, cut, wanted in (
        ("patch_size", images.patch_size, vision.patch_size),
        ("temporal_patch_size", images.temporal_patch_size, vision.temporal_patch_size),
        ("merge_size", images.merge_size, vision.spatial_merge_size),
    ):
        if cut != wanted:
            raise CheckpointError(f"the processor files say {name} {cut}, config.json wants {wanted}")


def _generation_config(
    folder: Path, raw: dict[str, Any], tokenizer: Tokenizer, vocabulary: int, *, add_mask: bool
) -> tuple[dict[str, Any], bool]:
    """`generation_config.json` (may be absent) with the mask token and the end tokens filled in; whether one is new."""
    generation = read_json_if_there(folder / "generation_config.json")
    text = raw["text_config"] if isinstance(raw.get("text_config"), dict) else {}
    mask = _first("mask_token_id", generation, raw, text)
    if mask is None:
        mask = mask_token(folder, tokenizer)
    added = mask is None and add_mask
    if added:
        mask = add_mask_token(tokenizer, vocabulary)
    if mask is None:
        raise CheckpointError(
            "no mask token: neither config.json nor generation_config.json has a mask_token_id, and the tokenizer "
            "has neither a mask_token nor the token <|MASK|>; an autoregressive checkpoint has none"
        )
    ends = _first("eos_token_id", generation, raw, text)
    if ends is None:
        ends = [number for token in _END_TOKENS if (number := tokenizer.token_to_id(token)) is not None][:1]
    ends = ends if isinstance(ends, list) else [ends]
    if not ends:
        raise CheckpointError("no end token: generation_config.json has no eos_token_id, the tokenizer no <|im_end|>")
    for name, number in [("mask_token_id", mask), *(("eos_token_id", end) for end in ends)]:
        if type(number) is not int or not 0 <= number < vocabulary:
            raise CheckpointError(f"{name} {number!r} is no token of this model")
    if mask in ends:
        raise CheckpointError(f"mask_token_id {mask} is an end token as well")
    images = generation.get("max_images")
    if images is not None and (type(images) is not int or images < 1):
        raise CheckpointError(f"generation_config.json: max_images must be a whole number from 1 on, not {images!r}")
    return generation | {"mask_token_id": mask, "eos_token_ids": ends}, added


def _first(name: str, *places: dict[str, Any]) -> Any:
    """The first value that is given."""
    return next((place[name] for place in places if place.get(name) is not None), None)
