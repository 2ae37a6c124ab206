"""The `echo-model` command. Wrong usage or input: one line on standard error, exit status 2."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from echo_model import (
    bench_command,
    corpus_commands,
    demo_checkpoint_path,
    domain_command,
    evaluate_command,
    guard_commands,
)
from echo_model.errors import EchoModelError
from echo_model.settings import GenerationSettings

if TYPE_CHECKING:
    from echo_model.engine import ReportEngine

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
    memory = inspect.add_argument_group("the memory that is predicted")
    memory.add_argument("--dtype", default=None, help="float32, bfloat16, float16, float64 (default: as stored)")
    memory.add_argument("--slots", type=_positive, default=8, help="requests at once (default 8)")
    memory.add_argument("--images", type=_positive, default=1, help="pictures a study, of the largest size (default 1)")
    memory.add_argument("--prompt-tokens", type=_positive, default=None, help="default: pictures and question")
    memory.add_argument("--gen-length", type=_positive, default=None, help="default: the checkpoint's")
    inspect.set_defaults(run=_inspect)

    phantoms = commands.add_parser("phantoms", help="draw synthetic radiographs with known findings")
    phantoms.add_argument("--out", type=Path, required=True, metavar="DIR")
    phantoms.add_argument("--count", type=_positive, required=True)
    phantoms.add_argument("--seed", type=_seed, default=0, help="same seed, same pixels and labels everywhere")
    phantoms.add_argument("--dicom", action="store_true", help="a DICOM file beside each PNG")
    phantoms.add_argument("--lateral", action="store_true", help="the lateral view of each as well")
    phantoms.set_defaults(run=_phantoms)

    evaluate = commands.add_parser("evaluate", help="measure a model on held-out phantoms or a labelled folder")
    _add_model(evaluate)
    material = evaluate.add_mutually_exclusive_group(required=True)
    material.add_argument("--phantoms", type=_positive, metavar="N")
    material.add_argument("--corpus", type=Path, metavar="DIR", help="a folder of phantoms, or a corpus (see `corpus`)")
    evaluate.add_argument("--seed", type=_seed, default=None, help="series of phantoms (default: one held out)")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    evaluate_command.add_options(evaluate)
    _add_decoding(evaluate)
    evaluate.set_defaults(run=_evaluate)

    corpus = commands.add_parser("corpus", help="convert, validate or normalise a corpus of radiographs with reports")
    corpus_commands.add_commands(corpus)

    train = commands.add_parser("train", help="train one stage on a corpus or phantoms, from checkpoint to checkpoint")
    train.add_argument("stage", choices=("ar", "rad", "dcd"), help="left to right, block diffusion, one-step")
    train.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="TOML; its keys are in docs/training.md"
    )
    train.add_argument("--resume", action="store_true", help="go on where a run that was cut off stopped")
    train.set_defaults(run=_train)

    bench_command.add_bench(commands.add_parser("bench", help="time the ways to decode, side by side"))
    guard_commands.add_lexicon(
        commands.add_parser("lexicon", help="give a checkpoint the words and word orders of its training reports")
    )
    guard_commands.add_guards(
        commands.add_parser("guards", help="measure what the guards find, on defects put in on purpose")
    )

    domain_command.add_domain(
        commands.add_parser("domain", help="score how far pictures are from those a model was trained on")
    )

    convert = commands.add_parser("convert", help="write a checkpoint again in today's layout")
    convert.add_argument("source", type=Path, metavar="SRC")
    convert.add_argument("target", type=Path, metavar="DST", help="a folder that does not exist yet")
    convert.add_argument("--dtype", default=None, help="float64, float32, bfloat16 or float16 (default: as stored)")
    convert.add_argument(
        "--max-shard-size", type=_size, default=None, metavar="SIZE", help="such as 500MB (default 4GB)"
    )
    convert.add_argument("--instruction", default=None, metavar="TEXT", help="the question the model was trained with")
    convert.add_argument("--max-pixels", type=_positive, default=None, help="larger pictures are scaled down to it")
    _add_decoding(convert)
    convert.set_defaults(run=_convert)
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


def _size(text: str) -> int:
    """Bytes, with an optional KB, MB or GB (powers of ten)."""
    number, unit = text.upper().removesuffix("B"), 1
    if number and number[-1] in "KMG":
        number, unit = number[:-1], 1000 ** ("KMG".index(number[-1]) + 1)
    return _positive(number) * unit


def _seed(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


def _refuse_unwritable(file: Path | None) -> None:
    """A folder that is missing is told before the work, not after."""
    if file is not None and not file.absolute().parent.is_dir():
        raise EchoModelError(f"{file}: its folder does not exist")


def _settings(args: argparse.Namespace) -> GenerationSettings:
    return GenerationSettings(
        block_length=args.block_length, gen_length=args.gen_length, denoising_steps=args.denoising_steps
    )


def _engine(args: argparse.Namespace) -> ReportEngine:
    from echo_model.engine import ReportEngine

    return ReportEngine.from_pretrained(args.model, device=args.device, dtype=args.dtype)


def _generate(args: argparse.Namespace) -> int:
    from echo_model.guards import OUT_OF_DOMAIN
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
        if OUT_OF_DOMAIN in report.flags:
            print("This image is unlike those the model was trained on: what it wrote about it means nothing.")
        stats = report.stats
        print(
            f"{stats.tokens} tokens in {stats.forward_passes} passes ({stats.tokens_per_forward:.1f} a pass), "
            f"{stats.total_seconds:.2f} s; model {report.model_id} {report.revision}"
        )
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from echo_model.inspection import inspect_checkpoint

    found = inspect_checkpoint(
        demo_checkpoint_path() if args.path == "demo" else Path(args.path),
        dtype=args.dtype,
        slots=args.slots,
        images=args.images,
        prompt_tokens=args.prompt_tokens,
        gen_length=args.gen_length,
    )
    if args.json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return 0
    tensors, notices, memory = (found.pop(name) for name in ("tensors", "notices", "memory"))
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, inner in value.items():
                print(f"  {key}: {inner}")
        else:
            print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    print(f"tensors: {len(tensors)}")
    print(
        f"memory predicted for {memory['dtype']}, {memory['slots']} slots, prompts of {memory['prompt_tokens']} tokens "
        f"({memory['patches']} patches), answers of {memory['gen_length']}:"
    )
    for name in ("weights", "key_value_per_slot", "key_value", "slot_state", "prompts"):
        print(f"  {name}: {memory[name] / 1e6:.1f} MB")
    for name in ("vision_tower", "prefill", "decode"):
        print(f"  activations of {name}: {memory[name] / 1e6:.1f} MB")
    print(f"  total, with the largest of these three: {memory['total'] / 1e6:.1f} MB")
    for notice in notices:
        print(f"note: {notice}")
    if args.tensors:
        for name, tensor in tensors.items():
            print(f"  {name} {tensor['dtype']} {tuple(tensor['shape'])}")
    return 0


def _phantoms(args: argparse.Namespace) -> int:
    from echo_model.data.export import export_phantoms

    try:
        export_phantoms(args.out, args.count, args.seed, args.dicom, args.lateral)
    except ModuleNotFoundError as error:
        print(f"echo-model: --dicom needs the package {error.name} (the extra echo-model[dicom])", file=sys.stderr)
        return 2
    print(f"{args.count} phantoms in {args.out}")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    for file in (args.json, args.reports):
        _refuse_unwritable(file)
    return evaluate_command.run(args, _engine, _settings(args))


def _train(args: argparse.Namespace) -> int:
    from echo_model.training.config import read_config

    config = read_config(args.config, args.stage)
    from echo_model.training.commands import train
    from echo_model.training.loop import Stopped

    stopped = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())  # what a queue sends before it kills
    try:
        train(args.stage, config, resume=args.resume, say=lambda line: print(line, flush=True), stopped=stopped.is_set)
    except Stopped as end:
        print(f"{end}; --resume goes on from here")
        return 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _convert(args: argparse.Namespace) -> int:
    from echo_model.convert import SHARD_BYTES, convert

    names = ("block_length", "gen_length", "denoising_steps", "instruction")
    loaded = convert(
        args.source,
        args.target,
        args.dtype,
        shard_bytes=args.max_shard_size or SHARD_BYTES,
        generation={name: value for name in names if (value := getattr(args, name)) is not None},
        max_pixels=args.max_pixels,
    )
    for notice in loaded.notices:
        print(f"note: {notice}")
    print(f"{loaded.model_id} written to {args.target} and read back")
    return 0
