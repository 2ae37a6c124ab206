"""Where the time of one decoding pass goes on a CPU: python benchmarks/decode_profile.py [--json FILE].

Demo model. For one report and for eight together, and for a pass of one token: CPU time of a pass, the same by kind of
operator (torch.profiler), and what the matrix products of such a pass take by themselves at these sizes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from echo_model.bench import describe_machine
from echo_model.bench_loops import BlockDiffusion, OwnAutoregressive, Timing, autoregressive, plain_loop
from echo_model.bench_rows import rules, subject
from echo_model.text_model import TextModel

ROOT = Path(__file__).parents[1]
TRIES = 2
KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_linear"),
    "attention": ("flash_attention",),
    "moving": (
        *("aten::copy_", "aten::cat", "aten::index", "aten::gather", "aten::scatter", "aten::roll", "aten::fill_"),
        *("aten::embedding", "aten::repeat", "aten::constant_pad_nd"),
    ),
    "elementwise": (
        *("aten::mul", "aten::add", "aten::sub", "aten::pow", "aten::mean", "aten::rsqrt", "aten::silu", "aten::where"),
        *("aten::masked_fill", "aten::max", "aten::argmax", "aten::logsumexp", "aten::_softmax", "aten::exp", "rms"),
        *("aten::neg", "aten::ge", "aten::le", "aten::lt", "aten::gt", "aten::eq", "aten::any", "aten::bitwise"),
    ),
}


def cpu_ms(work: Callable[[], Timing]) -> float:
    """CPU milliseconds of all threads for one pass, the least of several tries."""
    work()
    least = float("inf")
    for _ in range(TRIES):
        begun = time.process_time()
        passes = work().forward_passes
        least = min(least, 1e3 * (time.process_time() - begun) / passes)
    return least


def by_kind(work: Callable[[], Timing]) -> tuple[dict[str, float], float]:
    """Milliseconds of one pass inside operators of each kind, profiler's cost included, and the number of operators."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        passes = work().forward_passes
    spent = dict.fromkeys((*KINDS, "other"), 0.0)
    calls = 0
    for event in record.key_averages():
        kind = next((name for name, parts in KINDS.items() if any(part in event.key for part in parts)), "other")
        spent[kind] += event.self_cpu_time_total / 1e3 / passes
        calls += event.count
    return spent, calls / passes


def products(model: Any, rows: int) -> dict[str, float]:
    """The matrix products of one pass by themselves: `rows` rows through the layers, half of them through the head."""
    text = model.config.text_config
    hidden, inner = text.hidden_size, text.intermediate_size
    keys = 2 * text.num_key_value_heads * hidden // text.num_attention_heads
    sizes = [(hidden, hidden + keys), (hidden, hidden), (hidden, 2 * inner), (inner, hidden)]
    weights = [torch.randn(out, into) for _ in range(text.num_hidden_layers) for into, out in sizes]
    weights.append(torch.randn(text.vocab_size, hidden))
    counts = [rows] * (len(weights) - 1) + [max(1, rows // 2)]
    inputs = [torch.randn(count, weight.shape[1]) for count, weight in zip(counts, weights, strict=True)]

    def once() -> Timing:
        for given, weight in zip(inputs, weights, strict=True):
            torch.nn.functional.linear(given, weight)
        return Timing(0.0, 1, [])

    with torch.inference_mode():
        for _ in range(3):
            once()
        ms = cpu_ms(once)
    operations = 2 * sum(count * weight.numel() for count, weight in zip(counts, weights, strict=True))
    return {"rows": rows, "ms": ms, "gflop_s": operations / ms / 1e6}


def main() -> None:
    """Run and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "decode_profile_cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    what = subject("demo", torch.device("cpu"), torch.float32, tokens=64)
    text = TextModel(what.model, packed=True)
    loops: dict[str, tuple[int, Callable[[], Timing]]] = {
        "autoregressive, own": (1, OwnAutoregressive(text, what.prompt, what.tokens, what.mask_token_id).decode),
        "autoregressive, Hugging Face": (
            1,
            lambda: autoregressive(what.model, what.prompt, what.tokens, what.mask_token_id),
        ),
        "unfused block 8": (8, BlockDiffusion(text, what.prompt, rules(what, 8, fused=False)).decode),
        "fused block 8": (16, BlockDiffusion(text, what.prompt, rules(what, 8)).decode),
        "plain loop block 8": (16, lambda: plain_loop(what.model, what.prompt, rules(what, 8))),
        "fused block 8, batch 8": (128, BlockDiffusion(text, what.prompt, rules(what, 8), 8).decode),
    }
    passes = {}
    for name, (rows, run) in loops.items():
        cost = cpu_ms(run)
        spent, operators = by_kind(run)
        passes[name] = {"rows": rows, "cpu_ms": cost, "by_kind": spent, "operators": operators}
    result = {
        "machine": describe_machine(torch.device("cpu")),
        "threads": 1,
        "passes": passes,
        "products": [products(what.model, rows) for rows in (1, 8, 16, 32, 64, 128, 256)],
    }
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
