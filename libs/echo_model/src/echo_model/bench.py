"""`echo-model bench`: decode variants side by side on one model, one fixed prompt and picture, one machine.

Every round runs every variant once, so that a ratio compares runs made within moments of each other; ratios are medians
over the rounds. The end token is switched off: each variant decodes the same number of tokens.
"""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from echo_model import demo_checkpoint_path
from echo_model.bench_loops import Loop, Timing, autoregressive, block_diffusion, plain_loop
from echo_model.bench_shapes import SEED, SHAPES, random_model
from echo_model.decoding import Prompt, prepare_prompt
from echo_model.errors import SettingsError
from echo_model.images import n_image_tokens, preprocess
from echo_model.model import load_model
from echo_model.prompt import build_prompt
from echo_model.text_model import TextModel
from echo_model.unmasking import DecodingRules

BLOCKS = (4, 8, 16)
HEADLINE_BLOCK = 8
"""The block length whose rows the ratios compare."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


SHAPE_NAMES = ("demo", *SHAPES)
_DEMO_TOKENS = 128


@dataclass(frozen=True)
class Subject:
    """What is measured: a model, its prompt, its mask token, and the number of tokens that every variant decodes."""

    model: Any
    prompt: Prompt
    mask_token_id: int
    tokens: int


def subject(name: str, device: torch.device, dtype: torch.dtype, tokens: int | None = None) -> Subject:
    """The demo checkpoint with a drawn phantom, or random weights with a random picture. Raises SettingsError."""
    if name == "demo":
        return _demo(device, dtype, tokens)
    shape = SHAPES[name]
    if shape.needs_cuda and device.type != "cuda":
        raise SettingsError(f"shape {name} is measured on a CUDA device only (--device cuda)")
    model = random_model(shape, device, dtype)
    vocabulary = shape.text["vocab_size"]
    pictured = shape.grid[0] * shape.grid[1] // 4
    generator = torch.Generator().manual_seed(SEED)
    words = torch.randint(5, vocabulary, (shape.prompt_tokens - pictured,), generator=generator)
    ids = torch.cat([words[:8], torch.full((pictured,), 1), words[8:]])
    pixels = torch.randn(shape.grid[0] * shape.grid[1], 3 * 2 * 14 * 14, generator=generator)
    prompt = prepare_prompt(model, ids, pixels, torch.tensor([[1, *shape.grid]]))
    return Subject(model, prompt, mask_token_id=4, tokens=tokens or shape.tokens)


def _demo(device: torch.device, dtype: torch.dtype, tokens: int | None) -> Subject:
    from echo_model.data.phantoms import generate_phantom

    loaded = load_model(demo_checkpoint_path(), device, dtype)
    pixels, grid = preprocess(generate_phantom(SEED, 0).image, loaded.image_config)
    instruction = loaded.generation_config.get("instruction")
    ids = build_prompt(loaded.tokenizer, [n_image_tokens(grid, loaded.image_config)], instruction=instruction)
    prompt = prepare_prompt(loaded.model, torch.tensor(ids), torch.from_numpy(pixels), torch.from_numpy(grid)[None])
    return Subject(loaded.model, prompt, loaded.mask_token_id, tokens or _DEMO_TOKENS)


def variants(what: Subject) -> dict[str, tuple[int, Loop]]:
    """Name of every row, its block length and how to run it once."""

    def rules(block: int, *, fused: bool = True) -> DecodingRules:
        never = what.model.config.text_config.vocab_size  # no token has this number, so decoding never ends early
        return DecodingRules(what.mask_token_id, (never,), block, what.tokens, fused=fused)

    text = TextModel(what.model, packed=True)

    def own(block: int, *, fused: bool) -> Loop:
        return lambda: block_diffusion(text, [what.prompt], rules(block, fused=fused))

    rows: dict[str, tuple[int, Loop]] = {}
    for block in BLOCKS:
        rows[f"fused block {block}"] = (block, own(block, fused=True))
    rows[f"unfused block {HEADLINE_BLOCK}"] = (HEADLINE_BLOCK, own(HEADLINE_BLOCK, fused=False))
    if what.prompt.length % HEADLINE_BLOCK == 0:
        rows[f"plain loop block {HEADLINE_BLOCK}"] = (
            HEADLINE_BLOCK,
            lambda: plain_loop(what.model, what.prompt, rules(HEADLINE_BLOCK)),
        )
    rows["autoregressive"] = (
        1,
        lambda: autoregressive(what.model, what.prompt, what.tokens, what.mask_token_id),
    )
    return rows


def bench(
    name: str,
    device: str = "cpu",
    *,
    dtype: str | None = None,
    tokens: int | None = None,
    repeats: int = 5,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure every variant `repeats` times after one round to warm up. Returns what `--json` writes.

    `dtype` defaults to float32 on a CPU and bfloat16 on CUDA. Raises SettingsError.
    """
    if name not in SHAPE_NAMES:
        raise SettingsError(f"shape {name!r} is unknown; allowed: {', '.join(SHAPE_NAMES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("device 'cuda' was asked for, but no CUDA device can be used here")
    where = torch.device(device)
    kind = dtype or ("bfloat16" if where.type == "cuda" else "float32")
    if kind not in _DTYPES:
        raise SettingsError(f"dtype {kind!r} is unknown; allowed: {', '.join(_DTYPES)}")
    what = subject(name, where, _DTYPES[kind], tokens)
    runs = variants(what)
    rounds: list[dict[str, Timing]] = []
    for number in range(repeats + 1):
        say(f"round {number} of {repeats}" if number else "warming up")
        rounds.append({row: run() for row, (_, run) in runs.items()})
    measured = rounds[1:]
    return {
        "shape": name,
        "device": device,
        "dtype": kind,
        "repeats": repeats,
        "prompt_tokens": what.prompt.length,
        "decoded_tokens": what.tokens,
        "machine": describe_machine(where),
        "threads": torch.get_num_threads(),
        "versions": {package: importlib.metadata.version(package) for package in ("torch", "transformers")},
        "rows": [_row(row, block, [timings[row] for timings in measured]) for row, (block, _) in runs.items()],
        "ratios": _ratios(measured),
        "notes": {
            "tokens_per_second": "decoding only; the prompt's pass is in prefill_ms",
            "end_token": "switched off, so that every variant decodes the same number of tokens",
            "batch8_over_1": "null: the decoder takes one report at a time, there is no batch to measure",
        },
    }


def _row(name: str, block: int, timings: list[Timing]) -> dict[str, Any]:
    def spread(values: list[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "min": min(values), "max": max(values)}

    return {
        "variant": name,
        "block_length": block,
        "batch": 1,
        "tokens": len(timings[0].token_ids),
        "forward_passes": timings[0].forward_passes,
        "tokens_per_forward": len(timings[0].token_ids) / timings[0].forward_passes,
        "ms_per_forward": spread([1e3 * timing.decode_seconds / timing.forward_passes for timing in timings]),
        "tokens_per_second": spread([_speed(timing) for timing in timings]),
        "prefill_ms": spread([1e3 * timing.prefill_seconds for timing in timings]),
    }


def _speed(timing: Timing) -> float:
    return len(timing.token_ids) / timing.decode_seconds


def _ratios(measured: list[dict[str, Timing]]) -> dict[str, dict[str, float] | None]:
    """Tokens a second of the fused loop over those of another, round by round; None where a row does not exist."""
    own = f"fused block {HEADLINE_BLOCK}"
    others = {
        "fused_over_unfused": f"unfused block {HEADLINE_BLOCK}",
        "one_step_over_ar": "autoregressive",
        "over_plain_loop": f"plain loop block {HEADLINE_BLOCK}",
    }
    ratios: dict[str, dict[str, float] | None] = {"batch8_over_1": None}
    for name, other in others.items():
        if other not in measured[0]:
            ratios[name] = None
            continue
        values = [_speed(timings[own]) / _speed(timings[other]) for timings in measured]
        ratios[name] = {"median": float(np.median(values)), "min": min(values), "max": max(values)}
    return ratios


def table(result: dict[str, Any]) -> str:
    """The figures for people, a line each."""
    lines = [
        f"{result['shape']} on {result['machine']}; {result['dtype']}, {result['threads']} threads, "
        f"{result['prompt_tokens']} prompt tokens, {result['decoded_tokens']} decoded, {result['repeats']} rounds",
        f"{'variant':<20} {'ms/forward':>10} {'tokens/s':>9} {'(least':>8} {'most)':>8} {'tokens/forward':>14}",
    ]
    for row in result["rows"]:
        speed = row["tokens_per_second"]
        lines.append(
            f"{row['variant']:<20} {row['ms_per_forward']['median']:>10.2f} {speed['median']:>9.0f} "
            f"{speed['min']:>8.0f} {speed['max']:>8.0f} {row['tokens_per_forward']:>14.2f}"
        )
    for name, ratio in result["ratios"].items():
        text = "not measured" if ratio is None else f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        lines.append(f"{name:<20} {text}")
    return "\n".join(lines)


def describe_machine(device: torch.device) -> str:
    """The machine in words: processor or GPU, and system."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {platform.system()} {platform.machine()}"
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        if names:
            processor = f"{len(names)} x {names[0]}"
    return f"{processor}, {platform.system()} {platform.machine()}"
