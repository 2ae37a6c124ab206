"""The `echo-model` command. Wrong usage or input: one line on standard error, exit status 2."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from echo_model import demo_checkpoint_path
from echo_model.errors import EchoModelError
from echo_model.settings import GenerationSettings

NOTICE = "Not a medical device. The demo model was trained on drawn phantoms and has never seen a patient."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    # A checkpoint is a local folder: the libraries below are told that nothing is ever to be fetched.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        status: int = args.run(args)
    except EchoModelError as error:
        print(f"echo-model: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe went away: nobody to tell
        return 1
    except OSError as error:
        print(f"echo-model: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="echo-model", description=f"Chest X-ray report model. {NOTICE}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="write a draft report for each image (PNG, JPEG or .npy)")
    _add_model(generate)
    generate.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    generate.add_argument("--study", action="store_true", help="all images are views of one study: one report")
    generate.add_argument("--json", action="store_true", help="one JSON object a report")
    _add_decoding(generate)
    generate.set_defaults(run=_generate)

    inspect = commands.add_parser("inspect", help="say what a checkpoint holds, or why it cannot be used")
    inspect.add_argument("path", nargs="?", default="demo", help='checkpoint folder or "demo" (default)')
    inspect.add_argument("--tensors", action="store_true", help="list every tensor")
    inspect.add_argument("--json", action="store_true", help="everything as one JSON object")
    inspect.set_defaults(run=_inspect)

    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="demo", metavar="PATH", help='checkpoint folder or "demo" (default)')
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None, help="float32 (default on a CPU), bfloat16, float16, float64")


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--block-length", type=_positive, default=None)
    parser.add_argument("--gen-length", type=_positive, default=None, help="largest number of tokens")
    parser.add_argument("--denoising-steps", type=_positive, default=None, help="forward passes a block at most")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _settings(args: argparse.Namespace) -> GenerationSettings:
    return GenerationSettings(
        block_length=args.block_length, gen_length=args.gen_length, denoising_steps=args.denoising_steps
    )


def _engine(args: argparse.Namespace) -> Any:
    from echo_model.engine import ReportEngine

    return ReportEngine.from_pretrained(args.model, device=args.device, dtype=args.dtype)


def _generate(args: argparse.Namespace) -> int:
    from echo_model.images import read_image

    pictures = [read_image(path) for path in args.images]  # before the model is loaded: a typing error answers at once
    engine = _engine(args)
    if args.study:
        studies = [(args.images, pictures)]
    else:
        studies = [([path], [picture]) for path, picture in zip(args.images, pictures, strict=True)]
    for paths, images in studies:
        report = engine.generate(images, _settings(args))
        names = [str(path) for path in paths]
        if args.json:
            print(json.dumps({"images": names} | report.to_json(), ensure_ascii=False), flush=True)
            continue
        print(f"# {', '.join(names)}")
        for sentence in report.sentences:
            marks = f"  [{', '.join(sentence.flags)}]" if sentence.flags else ""
            print(f"{sentence.section:<10} {sentence.confidence:.2f}  {sentence.text}{marks}")
        print(f"flags: {', '.join(report.flags) or 'none'}")
        stats = report.stats
        print(
            f"{stats.tokens} tokens in {stats.forward_passes} passes ({stats.tokens_per_forward:.1f} a pass), "
            f"{stats.total_seconds:.2f} s; model {report.model_id} {report.revision}"
        )
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from echo_model.inspection import inspect_checkpoint

    found = inspect_checkpoint(demo_checkpoint_path() if args.path == "demo" else Path(args.path))
    if args.json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return 0
    tensors = found.pop("tensors")
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, inner in value.items():
                print(f"  {key}: {inner}")
        else:
            print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    print(f"tensors: {len(tensors)}")
    if args.tensors:
        for name, tensor in tensors.items():
            print(f"  {name} {tensor['dtype']} {tuple(tensor['shape'])}")
    return 0
