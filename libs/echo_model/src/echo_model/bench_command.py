"""`echo-model bench`: arguments, files and table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from echo_model.errors import EchoModelError


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Arguments of `echo-model bench`."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=("demo", "tiny", "3b", "7b"), default="demo", help="demo has real weights")
    parser.add_argument("--dtype", default=None, help="float32 (default on a CPU), bfloat16")
    parser.add_argument("--tokens", type=_positive, default=None, help="how many every variant decodes")
    parser.add_argument("--repeats", type=_positive, default=5, help="rounds measured (default 5)")
    parser.add_argument("--blocks", type=_numbers, default=None, metavar="N,N", help="block lengths (4,8,16,32)")
    parser.add_argument("--batches", type=_numbers, default=None, metavar="N,N", help="reports together (1,8,32)")
    parser.add_argument("--threads", type=_positive, default=None, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--limit", type=_positive, default=None, metavar="SECONDS", help="for all of it (default 540)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too, after every run")
    parser.add_argument("--png", type=Path, metavar="FILE", help="and a picture of them (needs matplotlib)")
    parser.set_defaults(run=_bench)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({_positive(part) for part in text.split(",")}))


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _bench(args: argparse.Namespace) -> int:
    for file in (args.json, args.png):
        if file is not None and not file.absolute().parent.is_dir():
            raise EchoModelError(f"{file}: its folder does not exist")
    import torch

    from echo_model.bench import BATCHES, BLOCKS, LIMIT_SECONDS, bench, table
    from echo_model.bench_plot import plot

    def keep(result: dict[str, Any]) -> None:
        if args.json is not None:
            args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    result = bench(
        args.shape,
        args.device,
        dtype=args.dtype,
        tokens=args.tokens,
        repeats=args.repeats,
        blocks=args.blocks or BLOCKS,
        batches=args.batches or BATCHES,
        limit_seconds=args.limit or LIMIT_SECONDS,
        keep=keep,
        say=_say,
    )
    sys.stdout.write(f"{table(result)}\n")
    if args.png is not None:
        plot(result, args.png)
    return 0
