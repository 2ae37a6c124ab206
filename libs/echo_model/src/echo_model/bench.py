"""`echo-model bench`: ways to decode side by side on one model, one fixed prompt and picture, one machine.

Every round runs every row once, so that a ratio compares runs made within moments of each other; ratios are medians
over the rounds. The end token is switched off: each row decodes the same number of tokens. The whole is kept within a
time limit by leaving rows out, with the reason, and what has been measured is handed out after every run.
"""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from echo_model.bench_floor import Limits, measure
from echo_model.bench_loops import Timing
from echo_model.bench_rows import HEADLINE_BLOCK, Row, all_rows, subject
from echo_model.bench_shapes import SHAPES
from echo_model.errors import SettingsError

BLOCKS, BATCHES = (4, 8, 16, 32), (1, 8, 32)
SHAPE_NAMES = ("demo", *SHAPES)
LIMIT_SECONDS = 540.0
"""Time that a bench may take in all, unless told otherwise."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_WARM_UP_SHARE = 0.5  # of the time limit, after which only rows that the ratios need are still begun
_OURS = (f"fused block {HEADLINE_BLOCK}", 1)
_RATIOS = {
    "fused_over_unfused": (_OURS, (f"unfused block {HEADLINE_BLOCK}", 1)),
    "one_step_over_ar": (_OURS, ("Hugging Face autoregressive", 1)),
    "one_step_over_own_ar": (_OURS, ("own autoregressive", 1)),
    "batch8_over_1": ((_OURS[0], 8), _OURS),
    "over_plain_loop": (_OURS, (f"plain loop block {HEADLINE_BLOCK}", 1)),
}


@dataclass
class _Measured:
    """A row, what its runs took, its memory in bytes (CUDA), and the wall time of one run."""

    row: Row
    cost: float
    memory: int | None
    timings: list[Timing] = field(default_factory=list)


@dataclass
class _Run:
    """One bench under way."""

    head: dict[str, Any]
    limits: Limits
    keep: Callable[[dict[str, Any]], None]
    say: Callable[[str], None]
    ends: float
    rows: list[_Measured] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    rounds: int = 0

    @property
    def left(self) -> float:
        """Seconds until the time limit."""
        return self.ends - time.monotonic()

    def skip(self, row: Row, reason: str) -> None:
        """Leave a row out."""
        self.say(f"left out: {row.name}, batch {row.batch}: {reason}")
        self.skipped.append({"variant": row.name, "batch": row.batch, "reason": reason})

    def result(self, *, complete: bool) -> dict[str, Any]:
        """What `--json` writes."""
        rows = [_figures(measured, self.limits) for measured in self.rows if measured.timings]
        done = {"complete": complete, "repeats": self.rounds, "limits": self.limits.to_json()}
        return {**self.head, **done, "rows": rows, "skipped": self.skipped, "ratios": _ratios(self.rows)}


def bench(
    name: str,
    device: str = "cpu",
    *,
    dtype: str | None = None,
    tokens: int | None = None,
    repeats: int = 5,
    blocks: Sequence[int] = BLOCKS,
    batches: Sequence[int] = BATCHES,
    limit_seconds: float = LIMIT_SECONDS,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure every row `repeats` times after warming up. Returns what `--json` writes.

    `dtype` defaults to float32 on a CPU and bfloat16 on CUDA. `keep` gets the result so far after every run. Rows that
    do not fit into `limit_seconds` are left out; if even those that the ratios need do not fit, there are fewer rounds.
    Raises SettingsError.
    """
    ends = time.monotonic() + limit_seconds
    if name not in SHAPE_NAMES:
        raise SettingsError(f"shape {name!r} is unknown; allowed: {', '.join(SHAPE_NAMES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("device 'cuda' was asked for, but no CUDA device can be used here")
    where = torch.device(device)
    kind = dtype or ("bfloat16" if where.type == "cuda" else "float32")
    if kind not in _DTYPES:
        raise SettingsError(f"dtype {kind!r} is unknown; allowed: {', '.join(_DTYPES)}")
    what = subject(name, where, _DTYPES[kind], tokens)
    head = {
        "shape": name,
        "device": device,
        "dtype": kind,
        "prompt_tokens": what.prompt.length,
        "decoded_tokens": what.tokens,
        "machine": describe_machine(where),
        "threads": torch.get_num_threads(),
        "versions": {package: importlib.metadata.version(package) for package in ("torch", "transformers")},
        "notes": _NOTES,
    }
    run = _Run(head, measure(where, _DTYPES[kind]), keep, say, ends)
    weights = sum(parameter.nbytes for parameter in what.model.parameters())
    _warm_up(run, all_rows(what, blocks, batches), where, weights, limit_seconds)
    wanted = _fit(run, repeats)
    while run.rounds < wanted and run.rows:
        say(f"round {run.rounds + 1} of {wanted}")
        _round(run)
        if run.left < sum(measured.cost for measured in run.rows):
            break
    result = run.result(complete=run.rounds >= repeats)
    keep(result)
    return result


_NOTES = {
    "tokens_per_second": "decoding only, all slots together",
    "tokens_per_forward": "of one report",
    "studies_per_second": "vision tower, prompt and decoding of whole studies; cutting the picture not counted",
    "memory_bytes": "CUDA allocator's peak: the weights and what this row alone adds; null on a CPU",
    "floor": "the longer of bytes / measured bandwidth and operations / measured peak; of_floor: its part of the time",
    "end_token": "switched off, so that every variant decodes the same number of tokens",
}


def _warm_up(run: _Run, rows: list[Row], device: torch.device, weights: int, limit: float) -> None:
    """Run every row until it is warm, and note what one run takes."""
    for row in rows:
        if not row.needed and run.left < limit * (1 - _WARM_UP_SHARE):
            run.skip(row, "no time left")
            continue
        run.say(f"warming up: {row.name}, batch {row.batch}")
        before = _reset_peak(device)
        try:
            for _ in range(row.warm_ups):
                begun = time.monotonic()
                row.run()
                cost = time.monotonic() - begun
        except Exception as error:  # noqa: BLE001 - whatever it is, the other rows are still worth measuring
            run.skip(row, f"failed: {type(error).__name__}: {error}")
            continue
        memory = None if before is None else weights + torch.cuda.max_memory_allocated(device) - before
        run.rows.append(_Measured(row, cost, memory))
        run.keep(run.result(complete=False))


def _reset_peak(device: torch.device) -> int | None:
    """Bytes allocated now, from which the allocator's peak is counted anew; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _fit(run: _Run, repeats: int) -> int:
    """Leave rows out, the costliest first, until the rounds fit into the time. Returns how many rounds there can be."""
    while True:
        cost = sum(measured.cost for measured in run.rows)
        spare = [measured for measured in run.rows if not measured.row.needed]
        if cost * repeats <= run.left or not spare:
            return max(1, min(repeats, int(run.left / cost))) if cost else 0
        costliest = max(spare, key=lambda measured: measured.cost)
        run.rows.remove(costliest)
        run.skip(costliest.row, f"{repeats} rounds of {costliest.cost:.1f} s did not fit into the time limit")


def _round(run: _Run) -> None:
    for measured in list(run.rows):
        try:
            measured.timings.append(measured.row.run())
        except Exception as error:  # noqa: BLE001 - whatever it is, the other rows are still worth measuring
            run.rows.remove(measured)
            run.skip(measured.row, f"failed: {type(error).__name__}: {error}")
        run.keep(run.result(complete=False))
    run.rounds += 1


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _figures(measured: _Measured, limits: Limits) -> dict[str, Any]:
    row, timings = measured.row, measured.timings
    passes, tokens = timings[0].forward_passes, len(timings[0].token_ids)
    decodes, studies = row.kind == "decode", row.kind == "end to end"
    prompts = [timing.prompt_seconds for timing in timings if timing.prompt_seconds]
    ms = _spread([1e3 * timing.seconds / timing.forward_passes for timing in timings])
    floor = None
    if row.work is not None:
        floor = limits.floor(row.work)
        floor["of_floor"] = floor["ms"] / ms["median"]
    return {
        "variant": row.name,
        "kind": row.kind,
        "block_length": row.block,
        "batch": row.batch,
        "tokens": tokens,
        "forward_passes": passes,
        "tokens_per_forward": tokens / passes / row.batch if tokens else None,
        "ms_per_forward": None if studies else ms,
        "tokens_per_second": _spread([_speed(timing) for timing in timings]) if decodes else None,
        "studies_per_second": _spread([row.batch / timing.seconds for timing in timings]) if studies else None,
        "prompt_ms": _spread([1e3 * seconds for seconds in prompts]) if prompts and not studies else None,
        "memory_bytes": measured.memory,
        "floor": floor,
    }


def _speed(timing: Timing) -> float:
    return len(timing.token_ids) / timing.seconds


def _ratios(rows: list[_Measured]) -> dict[str, dict[str, float] | None]:
    """Tokens a second of one row over those of another, round by round; None where a row was not measured."""
    timings = {(measured.row.name, measured.row.batch): measured.timings for measured in rows}
    ratios: dict[str, dict[str, float] | None] = {}
    for name, (upper, lower) in _RATIOS.items():
        pairs = zip(timings.get(upper, []), timings.get(lower, []), strict=False)  # the last round may be under way
        values = [_speed(one) / _speed(other) for one, other in pairs]
        ratios[name] = _spread(values) if values else None
    return ratios


def table(result: dict[str, Any]) -> str:
    """The figures for people, a line each."""
    lines = [
        f"{result['shape']} on {result['machine']}; {result['dtype']}, {result['threads']} threads, "
        f"{result['prompt_tokens']} prompt tokens, {result['decoded_tokens']} decoded, {result['repeats']} rounds",
        f"{'variant':<30} {'batch':>5} {'ms/pass':>9} {'tok/s':>8} {'(least':>8} {'most)':>8} {'tok/pass':>8} "
        f"{'studies/s':>9} {'GB':>6} {'of floor':>8}",
    ]
    for row in result["rows"]:
        speed = row["tokens_per_second"]
        lines.append(
            f"{row['variant']:<30} {row['batch']:>5} {_cell(row['ms_per_forward'], 9, 2)} {_cell(speed, 8)} "
            f"{_cell(speed and speed['min'], 8)} {_cell(speed and speed['max'], 8)} "
            f"{_cell(row['tokens_per_forward'], 8, 2)} {_cell(row['studies_per_second'], 9, 2)} "
            f"{_cell(row['memory_bytes'] and row['memory_bytes'] / 1e9, 6, 1)} "
            f"{_cell(row['floor'] and row['floor']['of_floor'], 8, 2)}"
        )
    lines += [f"left out: {row['variant']}, batch {row['batch']}: {row['reason']}" for row in result["skipped"]]
    for name, ratio in result["ratios"].items():
        text = "not measured" if ratio is None else f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        lines.append(f"{name:<30} {text}")
    return "\n".join(lines)


def _cell(value: Any, width: int, digits: int = 0) -> str:
    if value is None:
        return " " * width
    return f"{value['median'] if isinstance(value, dict) else value:>{width}.{digits}f}"


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
