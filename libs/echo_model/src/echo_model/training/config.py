"""The TOML file that `echo-model train` reads: one table of plain keys, every mistake named by its key."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from echo_model.errors import EchoModelError

StageName = Literal["ar", "rad", "dcd"]
STAGES: tuple[StageName, ...] = get_args(StageName)


class TrainConfigError(EchoModelError):
    """A key of the training file is missing, unknown or has a value that cannot be used."""


@dataclass(frozen=True)
class TrainConfig:
    """What a stage does; paths are relative to the file. docs/training.md has the table of keys.

    `work`: folder for the state to resume from, the curve and what is computed once. `out`: new checkpoint folder.
    `init`: checkpoint to start from; only `ar` on phantoms goes without one, and then trains a vision tower on
    `tower_samples` first. `corpus`: folder in the format of `echo_model.corpora`; without it `phantoms` are drawn, and
    `init` must have the demo model's shape. `seed`: series of phantoms, fresh weights, order and noise. `samples`: how
    many are learnt from, again and again.
    `lora_rank`: 0 trains all weights of the language model, else adapters of that rank, merged at the end.
    `decisive_weight` belongs to `ar`, `rad_decisive_weight` to `rad`, and so does `packed_tokens` (length of the rows
    that a batch of phantoms is packed into, 0 for one padded row a sample); `block_length` to `rad` and `dcd`. To `dcd`
    belong `tau` (confidence at which the teacher fixes a token), `top_k`, `eos_weight`, `ce_weight`, `weighted`
    (weights by unmasking step), `reverse_kl` and `canonical` (0 leaves the canonical rule out).

    The rest belongs to a corpus. `device`, `dtype` (of the computation), `accumulate` (parts that a batch is done in),
    `checkpointing` (activations are computed again instead of kept), `sharding` (weights over all processes).
    `images`: pictures of a study at most; `max_pixels` of one. `longest`: tokens of a report; longer ones are left out.
    `cache_features`: the frozen tower's output is kept on disk. `train_vision`: the tower learns too (`ar`). `loaders`:
    threads that read pictures ahead. `checked`: studies whose text is scored now and then; `validated`: those whose
    loss is. `save_minutes`, `check_minutes`: how often.
    """

    work: Path
    out: Path
    init: Path | None = None
    corpus: Path | None = None
    seed: int = 1
    phantoms: int = 9_216
    samples: int = 9_216
    batch: int = 8
    learning_rate: float = 1e-3
    threads: int = 1
    lora_rank: int = 0
    tower_samples: int = 18_000
    decisive_weight: float = 5.0
    rad_decisive_weight: float = 1.0
    packed_tokens: int = 0
    block_length: int = 8
    tau: float = 0.85
    top_k: int = 64
    eos_weight: float = 1.0
    ce_weight: float = 0.0
    canonical: float = 0.0
    weighted: bool = True
    reverse_kl: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    accumulate: int = 1
    checkpointing: bool = False
    sharding: str = "none"
    images: int = 2
    max_pixels: int = 2_250_000
    longest: int = 512
    cache_features: bool = True
    train_vision: bool = False
    loaders: int = 4
    checked: int = 16
    validated: int = 64
    save_minutes: float = 30.0
    check_minutes: float = 60.0


_LONGEST_BLOCK = {"phantoms": 16, "corpus": 64}  # a longer one would reach from the answer back into a phantom
_PATHS = {"work", "out", "init", "corpus"}
_MAY_BE_ZERO = {
    "seed", "eos_weight", "ce_weight", "canonical", "packed_tokens", "lora_rank", "loaders", "checked", "validated",
    "save_minutes", "check_minutes",
}  # fmt: skip
_WORDS = {
    "device": ("cpu", "cuda"),
    "dtype": ("float32", "bfloat16"),
    "sharding": ("none", "full"),
}
_OWN: dict[str, tuple[str, ...]] = {
    "tower_samples": ("ar",),
    "decisive_weight": ("ar",),
    "rad_decisive_weight": ("rad",),
    "train_vision": ("ar",),
    "packed_tokens": ("rad",),
    "block_length": ("rad", "dcd"),
    "tau": ("dcd",),
    "top_k": ("dcd",),
    "eos_weight": ("dcd",),
    "ce_weight": ("dcd",),
    "canonical": ("dcd",),
    "weighted": ("dcd",),
    "reverse_kl": ("dcd",),
}
_PHANTOMS_ALONE = {"phantoms", "tower_samples", "packed_tokens"}
_CORPUS_ALONE = {
    "device", "dtype", "accumulate", "checkpointing", "sharding", "images", "max_pixels", "longest", "cache_features",
    "train_vision", "loaders", "checked", "validated", "save_minutes", "check_minutes",
}  # fmt: skip
#: What a large model on real reports wants; the others are those of the demo model on phantoms.
_CORPUS_DEFAULTS: dict[str, Any] = {"learning_rate": 1e-5, "decisive_weight": 1.0, "top_k": 8}


def read_config(file: Path, stage: StageName) -> TrainConfig:
    """Read and check a training file for a stage. Raises TrainConfigError."""
    try:
        raw = tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainConfigError(f"{file}: no TOML file ({error})") from None
    known = {field.name: field for field in fields(TrainConfig)}
    material = "corpus" if "corpus" in raw else "phantoms"
    foreign = _PHANTOMS_ALONE if material == "corpus" else _CORPUS_ALONE
    values: dict[str, Any] = dict(_CORPUS_DEFAULTS) if material == "corpus" else {}
    for key, value in raw.items():
        if key not in known:
            raise TrainConfigError(f"{file}: key {key!r} is unknown; allowed: {', '.join(known)}")
        if stage not in _OWN.get(key, STAGES):
            raise TrainConfigError(f"{file}: key {key!r} has no meaning for the stage {stage}")
        if key in foreign:
            raise TrainConfigError(f"{file}: key {key!r} has no meaning for training on {material}")
        if key in _PATHS:
            values[key] = _path(file, key, value)
        elif key in _WORDS:
            values[key] = _word(file, key, value)
        else:
            values[key] = _number(file, key, value, known[key].default)
    may_begin = stage == "ar" and material == "phantoms"
    for key in ("work", "out", *(() if may_begin else ("init",))):
        if key not in values:
            raise TrainConfigError(f"{file}: key {key!r} is missing; the stage {stage} needs it")
    config = TrainConfig(**values)
    _check(file, config, material)
    return config


def _check(file: Path, config: TrainConfig, material: str) -> None:
    """What several keys must fulfil together, or one beyond its type."""
    if config.samples < config.batch:
        raise TrainConfigError(f"{file}: key 'samples' must be at least the batch of {config.batch}")
    if config.batch % config.accumulate:
        raise TrainConfigError(
            f"{file}: key 'accumulate': a batch of {config.batch} cannot be done in {config.accumulate} equal parts"
        )
    for key, share in (("tau", config.tau), ("canonical", config.canonical)):
        if share > 1:
            raise TrainConfigError(f"{file}: key {key!r} must lie between 0 and 1, not {share}")
    if config.packed_tokens and config.rad_decisive_weight != 1:
        raise TrainConfigError(f"{file}: keys 'packed_tokens' and 'rad_decisive_weight' exclude each other")
    if config.train_vision and config.lora_rank:
        raise TrainConfigError(f"{file}: keys 'train_vision' and 'lora_rank' exclude each other: adapters freeze it")
    if config.block_length > _LONGEST_BLOCK[material]:
        raise TrainConfigError(f"{file}: key 'block_length' must be at most {_LONGEST_BLOCK[material]}")
    if config.out.exists():
        raise TrainConfigError(f"{file}: key 'out': {config.out} exists already; a stage writes a new folder")


def _path(file: Path, key: str, value: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise TrainConfigError(f"{file}: key {key!r} must be a path, not {value!r}")
    return file.parent / value


def _word(file: Path, key: str, value: Any) -> str:
    if value not in _WORDS[key]:
        raise TrainConfigError(f"{file}: key {key!r} must be one of {', '.join(_WORDS[key])}, not {value!r}")
    return str(value)


def _number(file: Path, key: str, value: Any, default: Any) -> int | float | bool:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise TrainConfigError(f"{file}: key {key!r} must be true or false, not {value!r}")
        return value
    whole = isinstance(default, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise TrainConfigError(
            f"{file}: key {key!r} must be {'a whole number' if whole else 'a number'}, not {value!r}"
        )
    least = 0 if key in _MAY_BE_ZERO else 1 if whole else None
    if value != value or value == float("inf") or (value <= 0 if least is None else value < least):
        raise TrainConfigError(f"{file}: key {key!r} must be {'positive' if least is None else f'at least {least}'}")
    return int(value) if whole else float(value)
