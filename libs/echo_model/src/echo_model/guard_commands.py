"""`echo-model lexicon` and `echo-model guards`: make a checkpoint's lexicon, and measure what the guards find."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from echo_model import demo_checkpoint_path
from echo_model.errors import EchoModelError
from echo_model.guard_settings import DEFAULT_GATE


def add_lexicon(parser: argparse.ArgumentParser) -> None:
    """Arguments of `echo-model lexicon`."""
    parser.add_argument("--model", required=True, metavar="DIR", help='checkpoint folder that gets it, or "demo"')
    material = parser.add_mutually_exclusive_group(required=True)
    material.add_argument("--phantoms", type=int, metavar="N", help="reports of N phantoms of the training series")
    material.add_argument("--corpus", type=Path, metavar="DIR", help="reports of a folder with labels.jsonl")
    parser.add_argument("--seed", type=int, default=None, help="series of phantoms (default 1, the demo model's)")
    parser.set_defaults(run=_lexicon)


def add_guards(parser: argparse.ArgumentParser) -> None:
    """Arguments of `echo-model guards`."""
    parser.add_argument("--model", default="demo", metavar="PATH", help='checkpoint folder or "demo" (default)')
    parser.add_argument("--cases", type=int, default=200, metavar="N", help="defects of each kind (default 200)")
    parser.add_argument("--texts", type=int, default=1_000, metavar="N", help="good texts (default 1000)")
    parser.add_argument(
        "--phantoms", type=int, default=0, metavar="N", help="also decode N phantoms with the rails off and on"
    )
    parser.add_argument("--seed", type=int, default=None, help="their series (default: the held-out one)")
    parser.add_argument(
        "--gate", type=float, default=DEFAULT_GATE, help=f"confidence that the gate asks for (default {DEFAULT_GATE})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.set_defaults(run=_guards)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _folder(name: str) -> Path:
    folder = demo_checkpoint_path() if name == "demo" else Path(name)
    if not folder.is_dir():
        raise EchoModelError(f"{folder} is no folder")
    return folder


def _lexicon(args: argparse.Namespace) -> int:
    from echo_model.data.report_texts import TRAIN_SEED, phantom_texts
    from echo_model.evaluation.corpus import read_corpus
    from echo_model.guards import LEXICON_FILE, Lexicon

    folder = _folder(args.model)
    if args.corpus is not None and args.seed is not None:
        raise EchoModelError("--seed goes with --phantoms, not with --corpus")
    if args.corpus is not None:
        texts = [entry.report for entry in read_corpus(args.corpus)]
    else:
        seed = TRAIN_SEED if args.seed is None else args.seed
        if args.phantoms < 1 or seed < 0:
            raise EchoModelError("--phantoms must be at least 1 and --seed not negative")
        texts = phantom_texts(seed, args.phantoms)
    lexicon = Lexicon.fit(texts)
    lexicon.save(folder / LEXICON_FILE)
    order = f"{lexicon.order_run} unseen in a row are flagged" if lexicon.order_run else "not judged"
    _say(
        f"{folder / LEXICON_FILE}: {len(lexicon.symbols)} words and marks, {len(lexicon.pairs)} pairs ({order}), "
        f"from {len(texts)} reports"
    )
    return 0


def _guards(args: argparse.Namespace) -> int:
    from echo_model.evaluation import rails
    from echo_model.evaluation.guards import measure_guards, table
    from echo_model.evaluation.phantoms import HELD_OUT_SEED

    if args.phantoms < 0:
        raise EchoModelError("--phantoms must not be negative")
    if args.cases < 2 or args.texts < args.cases:
        raise EchoModelError("--cases must be at least 2, and --texts at least as many as --cases")
    if args.json is not None and not args.json.absolute().parent.is_dir():
        raise EchoModelError(f"{args.json}: its folder does not exist")
    result = measure_guards(_folder(args.model), cases=args.cases, texts=args.texts)
    if args.phantoms:
        seed = HELD_OUT_SEED if args.seed is None else args.seed
        result["decoding"] = rails.measure_rails(_folder(args.model), args.phantoms, seed, gate=args.gate)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    _say(table(result))
    if args.phantoms:
        _say(rails.table(result["decoding"]))
    return 0
