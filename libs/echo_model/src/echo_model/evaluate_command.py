"""`echo-model evaluate`: one model, phantoms or a corpus, every figure that can be had."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from echo_model.errors import EchoModelError

if TYPE_CHECKING:
    from echo_model.engine import ReportEngine
    from echo_model.evaluation.phantoms import Views
    from echo_model.report import Report
    from echo_model.settings import GenerationSettings

AT_ONCE: Final = 32
"""Images that are handed to the engine together; it decodes as many at a time as it has slots."""

NO_OWN_CODE: Final = {
    "ratescore": "RaTEScore",
    "radgraph_f1": "RadGraph",
}
"""Metrics that only their authors' packages compute."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `evaluate` takes beside model, material and decoding."""
    parser.add_argument(
        "--judge", type=Path, metavar="PATH", help="checkpoint trained left to right; gives the perplexity"
    )
    parser.add_argument("--chexbert", type=Path, metavar="DIR", help="CheXbert's weights; gives its F1 and SemScore")
    parser.add_argument("--split", metavar="NAME", help="of a corpus: train, validate or test alone")
    parser.add_argument(
        "--views", type=int, default=1, metavar="N", help="of a corpus: N views of a study in one prompt (default 1)"
    )
    parser.add_argument(
        "--reports", type=Path, metavar="FILE", help="write generated and reference texts there, a JSON line each"
    )


def run(args: argparse.Namespace, engine_of: Any, settings: GenerationSettings) -> int:
    """Carry the command out; ``engine_of(args)`` loads the engine once the material is known to be sound."""
    from echo_model.evaluation import evaluate_corpus, evaluate_phantoms
    from echo_model.evaluation.chexbert import CheXbert
    from echo_model.evaluation.corpus import read_corpus
    from echo_model.evaluation.generation import generation_figures
    from echo_model.evaluation.perplexity import Judge
    from echo_model.evaluation.phantoms import HELD_OUT_SEED
    from echo_model.model import load_model

    if args.corpus is not None and args.seed is not None:
        raise EchoModelError("--seed goes with --phantoms, not with --corpus")
    if args.corpus is None and args.split is not None:
        raise EchoModelError("--split goes with --corpus, not with --phantoms")
    if args.views < 1 or (args.views > 1 and args.corpus is None):
        raise EchoModelError("--views goes with --corpus, and is at least 1")
    # a broken folder is told at once
    entries = None if args.corpus is None else read_corpus(args.corpus, args.split, args.views)
    count = args.phantoms if entries is None else len(entries)
    chexbert = None if args.chexbert is None else CheXbert(args.chexbert)
    judge = None if args.judge is None else Judge(load_model(args.judge, args.device, args.dtype))
    engine = engine_of(args)
    reports: list[Report] = []
    references: list[str] = []

    def generate(images: list[Any]) -> list[str]:
        made = _generate(engine, settings, images)
        if judge is not None and len(reports) < count:
            judge.add_all(images, [report.text for report in made])
        reports.extend(made)
        return [report.text for report in made]

    def progress(done: int) -> None:
        sys.stderr.write(f"\r{done}/{count}" + ("" if done < count else "\n"))
        sys.stderr.flush()

    with engine:
        if entries is None:
            seed = HELD_OUT_SEED if args.seed is None else args.seed
            result = evaluate_phantoms(generate, count, seed, references, batch=AT_ONCE, progress=progress)
        else:
            result = evaluate_corpus(generate, entries, references, batch=AT_ONCE, progress=progress)
        rules = settings.rules(engine.loaded.generation_config)
    own = reports[:count]  # what follows are the controls
    texts = [report.text for report in own]
    figures: dict[str, float | None] = {
        "perplexity": None if judge is None else round(judge.perplexity, 4),
        **generation_figures(own, rules.block_length),
    }
    skipped = {
        name: f"needs the package {package}; --reports writes what it reads" for name, package in NO_OWN_CODE.items()
    }
    if judge is None:
        skipped["perplexity"] = "needs a model trained left to right (--judge PATH)"
    if chexbert is None:
        skipped["chexbert"] = skipped["semscore"] = "needs CheXbert's weights (--chexbert DIR)"
    else:
        figures |= chexbert.scores(texts, references)
    result |= {
        "model": {"id": own[0].model_id, "revision": own[0].revision},
        "settings": asdict(rules),
        **figures,
        "skipped": skipped,
    }
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if args.reports is not None:
        _write_reports(args.reports, texts, references)
    _tell(result, figures)
    return 0


def _generate(engine: ReportEngine, settings: GenerationSettings, images: Sequence[Views]) -> list[Report]:
    """The reports on images, or on studies of several views, decoded together."""
    waiting = [engine.submit(image, settings) for image in images]
    return [future.result() for future in waiting]


def _write_reports(path: Path, texts: Sequence[str], references: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for text, reference in zip(texts, references, strict=True):
            file.write(json.dumps({"generated": text, "reference": reference}, ensure_ascii=False) + "\n")


def _tell(result: dict[str, Any], figures: dict[str, float | None]) -> None:
    scores = ("macro_f1", "micro_f1", "laterality_accuracy", "exact", "rouge_l", "cider", "bleu4", "meteor")
    for name in (*scores, *figures):
        if result[name] is not None:
            _say(f"{name:<32} {result[name]:.3f}")
    for name, entry in result["per_finding"].items():
        _say(f"  {name:<18} F1 {entry['f1']:.3f}  ({entry['tp'] + entry['fn']} present)")
    for name, control in result["controls"].items():
        _say(f"control {name}: macro F1 {control['macro_f1']:.3f}, micro F1 {control['micro_f1']:.3f}")
    for name, reason in result["skipped"].items():
        _say(f"skipped {name}: {reason}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
