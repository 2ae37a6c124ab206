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
    """What a stage does; paths are relative to the file.

    `work`: folder for the corpus, the state to resume from and the curve. `out`: new checkpoint folder. `init`:
    checkpoint to start from (the demo model's shape); only `ar` goes without one, and then trains a vision tower on
    `tower_samples` first. `seed`: series of phantoms, fresh weights and noise. `phantoms`: size of the corpus.
    `samples`: how many are learnt from, again and again.
    `lora_rank`: 0 trains all weights of the language model, else adapters of that rank, merged at the end.
    `decisive_weight` belongs to `ar`, `packed_tokens` (length of the rows that a batch is packed into, 0 for one padded
    row a sample) to `rad`, `block_length` to `rad` and `dcd`. To `dcd` belong `tau` (confidence at which the teacher
    fixes a token), `top_k`, `eos_weight`, `ce_weight`, `weighted` (weights by unmasking step), `reverse_kl` and
    `canonical` (0 leaves the canonical rule out).
    """

    work: Path
    out: Path
    init: Path | None = None
    seed: int = 1
    phantoms: int = 9_216
    samples: int = 9_216
    batch: int = 8
    learning_rate: float = 1e-3
    threads: int = 1
    lora_rank: int = 0
    tower_samples: int = 18_000
    decisive_weight: float = 5.0
    packed_tokens: int = 0
    block_length: int = 8
    tau: float = 0.85
    top_k: int = 64
    eos_weight: float = 1.0
    ce_weight: float = 0.0
    canonical: float = 0.0
    weighted: bool = True
    reverse_kl: bool = False


_LONGEST_BLOCK = 16
_PATHS = {"work", "out", "init"}
_OWN: dict[str, tuple[str, ...]] = {
    "tower_samples": ("ar",),
    "decisive_weight": ("ar",),
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


def read_config(file: Path, stage: StageName) -> TrainConfig:
    """Read and check a training file for a stage. Raises TrainConfigError."""
    try:
        raw = tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainConfigError(f"{file}: no TOML file ({error})") from None
    known = {field.name: field for field in fields(TrainConfig)}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in known:
            raise TrainConfigError(f"{file}: key {key!r} is unknown; allowed: {', '.join(known)}")
        if stage not in _OWN.get(key, STAGES):
            raise TrainConfigError(f"{file}: key {key!r} has no meaning for the stage {stage}")
        values[key] = _path(file, key, value) if key in _PATHS else _number(file, key, value, known[key].default)
    for key in ("work", "out", *(() if stage == "ar" else ("init",))):
        if key not in values:
            raise TrainConfigError(f"{file}: key {key!r} is missing; the stage {stage} needs it")
    config = TrainConfig(**values)
    if config.samples < config.batch:
        raise TrainConfigError(f"{file}: key 'samples' must be at least the batch of {config.batch}")
    for key, share in (("tau", config.tau), ("canonical", config.canonical)):
        if share > 1:
            raise TrainConfigError(f"{file}: key {key!r} must lie between 0 and 1, not {share}")
    if config.block_length > _LONGEST_BLOCK:
        # a longer block would reach from the answer back into the picture
        raise TrainConfigError(f"{file}: key 'block_length' must be at most {_LONGEST_BLOCK}")
    if config.out.exists():
        raise TrainConfigError(f"{file}: key 'out': {config.out} exists already; a stage writes a new folder")
    return config


def _path(file: Path, key: str, value: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise TrainConfigError(f"{file}: key {key!r} must be a path, not {value!r}")
    return file.parent / value


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
    least = (
        0
        if key in {"seed", "eos_weight", "ce_weight", "canonical", "packed_tokens", "lora_rank"}
        else 1
        if whole
        else None
    )
    if value != value or value == float("inf") or (value <= 0 if least is None else value < least):
        raise TrainConfigError(f"{file}: key {key!r} must be {'positive' if least is None else f'at least {least}'}")
    return int(value) if whole else float(value)
