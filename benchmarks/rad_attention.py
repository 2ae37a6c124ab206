#!/usr/bin/env python3
"""Attention under RAD's layout against a copy of the whole sequence: python benchmarks/rad_attention.py [--json FILE].

Pairs of tokens are counted from the masks. Measured on the CPU, in CPU time of one thread and side by side in every
round: scaled_dot_product_attention with the mask as a tensor, which computes every pair, and FlexAttention compiled
with the rule, which leaves out empty tiles; forward passes, a few heads of the size of Qwen2.5-VL-7B.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from echo_model.bench import describe_machine
from echo_model.training.attention_cost import TILE, attention_cost, duplicated_layout, rad_layout
from echo_model.training.rad import TokenIndex

ROOT = Path(__file__).parents[1]
VISION, QUESTION, RESPONSE, BLOCK = 2_870, 58, 180, 8
HEADS, HEAD_SIZE = 2, 128
KINDS = ("whole", "tiled", "allowed")


def kernels(index: TokenIndex) -> dict[str, Callable[[], torch.Tensor]]:
    """Both ways to compute the attention of a row, on random numbers."""
    length = len(index.sample)
    query, key, value = torch.randn(3, 1, HEADS, length, HEAD_SIZE, generator=torch.Generator().manual_seed(1))
    mask = index.dense()[None, None]
    tiles = create_block_mask(index.mask_mod(), 1, 1, length, length, device="cpu", BLOCK_SIZE=TILE)
    compiled = torch.compile(flex_attention, dynamic=False)
    return {
        "scaled_dot_product_attention": lambda: scaled_dot_product_attention(query, key, value, attn_mask=mask),
        "flex_attention": lambda: compiled(query, key, value, block_mask=tiles),
    }


def cpu_ms(work: Callable[[], torch.Tensor]) -> float:
    """CPU milliseconds of one call."""
    begun = time.process_time()
    work()
    return 1e3 * (time.process_time() - begun)


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


@torch.inference_mode()
def measure(layouts: dict[str, TokenIndex], rounds: int) -> dict[str, Any]:
    """CPU time of both layouts by kernel, and their ratio round by round."""
    ways = {name: kernels(index) for name, index in layouts.items()}
    result = {}
    for kernel in next(iter(ways.values())):
        runs = {name: way[kernel] for name, way in ways.items()}
        outputs = {name: run() for name, run in runs.items()}  # compiles what has to be
        if not all(output.isfinite().all() for output in outputs.values()):
            raise ArithmeticError(f"{kernel} gave numbers that are not finite")
        times = [{name: cpu_ms(run) for name, run in runs.items()} for _ in range(rounds)]
        result[kernel] = {name: spread([row[name] for row in times]) for name in runs} | {
            "ratio": spread([row["duplicated"] / row["rad"] for row in times])
        }
    return result


def main() -> None:
    """Count, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "rad_attention_cpu.json")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = (VISION + QUESTION, RESPONSE, BLOCK)
    layouts = {"rad": rad_layout(*sizes), "duplicated": duplicated_layout(*sizes)}
    counted = {name: asdict(attention_cost(index)) for name, index in layouts.items()}
    result = {
        "machine": describe_machine(torch.device("cpu")),
        "torch": torch.__version__,
        "threads": 1,
        "vision_tokens": VISION,
        "question_tokens": QUESTION,
        "response_tokens": RESPONSE,
        "block_length": BLOCK,
        "heads": HEADS,
        "head_size": HEAD_SIZE,
        "tile": TILE,
        "rounds": options.rounds,
        "counted": counted,
        "counted_ratio": {kind: counted["duplicated"][kind] / counted["rad"][kind] for kind in KINDS},
        "measured": measure(layouts, options.rounds),
    }
    options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
