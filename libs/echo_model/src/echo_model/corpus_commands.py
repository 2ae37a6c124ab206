"""`echo-model corpus convert | validate | normalise`."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from echo_model.errors import EchoModelError

if TYPE_CHECKING:
    from echo_model.corpora.entry import Problem
    from echo_model.data.normalise import Normaliser

_LAYOUTS = ("mimic-cxr-jpg", "chexpert-plus", "rexgradient", "iu-xray", "csv")


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Arguments of `echo-model corpus`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    convert = actions.add_parser("convert", help="read a published layout or a CSV and write the index")
    convert.add_argument("layout", choices=_LAYOUTS)
    convert.add_argument("root", type=Path, metavar="DIR", help="the corpus as it was obtained")
    convert.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the index")
    convert.add_argument("--views", default="frontal,lateral,unknown", help="which views to keep (default: all)")
    convert.add_argument("--split-anew", action="store_true", help="split by patient even where the corpus has a split")
    convert.add_argument("--shares", default="0.8,0.1,0.1", help="of patients: train, validate, test")
    convert.add_argument("--seed", type=int, default=0, help="of the split")
    convert.add_argument("--no-images", action="store_true", help="do not open images: no near-duplicates are found")
    convert.add_argument("--normalise", action="store_true", help="add the reports in the fixed order (by the rules)")
    convert.set_defaults(run=_convert)

    validate = actions.add_parser("validate", help="say what is wrong with a corpus, line by line")
    validate.add_argument("corpus", type=Path, metavar="DIR")
    validate.add_argument("--no-images", action="store_true", help="only see whether the images are there")
    validate.add_argument("--json", type=Path, metavar="FILE", help="write the problems there too, a JSON line each")
    validate.set_defaults(run=_validate)

    normalise = actions.add_parser("normalise", help="write every report of a corpus anew in the fixed order")
    normalise.add_argument("corpus", type=Path, metavar="DIR")
    normalise.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the new index")
    normalise.add_argument(
        "--endpoint", metavar="URL", help="ask this OpenAI-compatible endpoint: the reports leave this machine"
    )
    normalise.add_argument("--chat-model", metavar="NAME", help="model name for the endpoint")
    normalise.add_argument("--timeout", type=float, default=60.0, help="seconds for one answer (default 60)")
    normalise.set_defaults(run=_normalise)


def _convert(args: argparse.Namespace) -> int:
    from echo_model.corpora.convert import Plan, convert_corpus
    from echo_model.corpora.entry import VIEWS
    from echo_model.data.normalise import RuleNormaliser

    views = tuple(args.views.split(","))
    if odd := [view for view in views if view not in VIEWS]:
        raise EchoModelError(f"--views {odd[0]!r}: there are {', '.join(VIEWS)}")
    try:
        train, validate, test = (float(part) for part in args.shares.split(","))
    except ValueError:
        raise EchoModelError(f"--shares {args.shares!r}: three numbers that add up to 1 are wanted") from None
    plan = Plan(views, not args.split_anew, (train, validate, test), args.seed, not args.no_images)
    normaliser = RuleNormaliser() if args.normalise else None
    done = convert_corpus(args.layout, args.root, args.out, plan, normaliser=normaliser, progress=_progress)
    _tell(done.problems)
    splits = Counter(entry.split for entry in done.entries)
    _say(
        f"{len(done.entries)} images: " + ", ".join(f"{splits[name]} {name}" for name in ("train", "validate", "test"))
    )
    if done.left_out:
        _say("left out: " + ", ".join(f"{count} {reason}" for reason, count in sorted(done.left_out.items())))
    return 0


def _validate(args: argparse.Namespace) -> int:
    from echo_model.corpora.validate import validate_corpus

    sound, problems = validate_corpus(args.corpus, look_at_images=not args.no_images, progress=_progress)
    _tell(problems)
    if args.json is not None:
        lines = (
            json.dumps({"where": p.where, "code": p.code, "error": p.is_error, "message": p.message}) for p in problems
        )
        args.json.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    errors = sum(problem.is_error for problem in problems)
    _say(f"{sound} lines read, {errors} errors, {len(problems) - errors} warnings")
    return 1 if errors else 0


def _normalise(args: argparse.Namespace) -> int:
    from echo_model.corpora.entry import CorpusError, image_root, read_about, read_index, write_index
    from echo_model.data.normalise import RuleNormaliser

    entries, problems = read_index(args.corpus)
    if problems:
        raise CorpusError(f"{args.corpus}: {problems[0]}")
    normaliser = _chat(args) if args.endpoint else RuleNormaliser()
    notes: Counter[str] = Counter()
    made = []
    for number, entry in enumerate(entries, start=1):
        result = normaliser.normalise(replace(entry, normalised=None).report)
        notes["by the endpoint" if result.backend == "chat" else "by the rules"] += 1
        for note in result.notes:
            sys.stderr.write(f"{entry.where}: {note}\n")
        made.append(replace(entry, normalised={"findings": result.findings, "impression": result.impression}))
        _progress(number)
    about = read_about(args.corpus)
    write_index(args.out, made, root=image_root(args.corpus), source=about["source"], about={"normalised": dict(notes)})
    _say(f"{len(made)} reports: " + ", ".join(f"{count} {how}" for how, count in sorted(notes.items())))
    return 0


def _chat(args: argparse.Namespace) -> Normaliser:
    from echo_model.data.normalise_chat import ChatEndpoint, ChatNormaliser

    if not args.chat_model:
        raise EchoModelError("--endpoint needs --chat-model")
    sys.stderr.write("The text of every report is sent to the endpoint.\n")
    return ChatNormaliser(ChatEndpoint(args.endpoint, args.chat_model, timeout=args.timeout))


def _tell(problems: Iterable[Problem]) -> None:
    for problem in problems:
        _say(str(problem))


def _progress(done: int) -> None:
    if done % 1000 == 0:
        sys.stderr.write(f"\r{done}")
        sys.stderr.flush()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
