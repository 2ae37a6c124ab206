"""Trains the demonstration model: ``python -m echo_model.training.demo --work DIR --out DIR``.

Stages: vision tower as a classifier, autoregressive text, RAD (block diffusion). Each resumes in the work folder.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from echo_model.data.tokenizer import train_tokenizer
from echo_model.engine import ReportEngine
from echo_model.evaluation import evaluate_phantoms
from echo_model.guards import LEXICON_FILE, Lexicon
from echo_model.training.checkpoint import BLOCK, write_card, write_checkpoint, write_domain
from echo_model.training.corpus import Corpus, training_report
from echo_model.training.features import Features
from echo_model.training.shape import QUESTION, new_model, prompt_layout
from echo_model.training.text_stages import TextData, ar_loss, rad_loss, train_text
from echo_model.training.texts import tokenise
from echo_model.training.tower import tower_f1, train_tower


@dataclass(frozen=True)
class Plan:
    """How much each stage sees, in samples, and the seeds. The tower stops before its schedule's cosine has ended."""

    train_seed: int = 1
    weights_seed: int = 7
    noise_seed: int = 1_000_000
    phantoms: int = 16_000
    text_phantoms: int = 9_216
    tower_samples: int = 18_000
    tower_schedule: int = 22_000
    ar_samples: int = 9_216
    rad_samples: int = 12_288
    decisive_weight: float = 5.0
    evaluated: int = 200
    tokenizer_reports: int = 4_000

    def scaled(self, factor: float) -> Plan:
        """The same plan for ``factor`` times the training time."""
        if factor <= 0:
            raise ValueError("the scale must be positive")
        return replace(
            self,
            phantoms=max(128, int(self.phantoms * factor)),
            text_phantoms=max(128, int(self.text_phantoms * factor)),
            tower_samples=int(self.tower_samples * factor),
            tower_schedule=int(self.tower_schedule * factor),
            ar_samples=int(self.ar_samples * factor),
            rad_samples=int(self.rad_samples * factor),
            evaluated=min(self.evaluated, max(8, int(self.evaluated * factor))),
        )


def say(line: str) -> None:
    """Print a progress line with the time."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
    sys.stdout.flush()


def train(plan: Plan, work: Path, out: Path) -> None:
    """Run every stage that is not finished yet in ``work`` and write the checkpoint to ``out``."""
    work.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(work / "corpus", plan.train_seed, plan.phantoms)
    reports = [training_report(plan.train_seed, index) for index in range(plan.phantoms)]
    tokenizer = train_tokenizer((report.text for report in reports[: plan.tokenizer_reports]), QUESTION)
    model = new_model(tokenizer, plan.weights_seed)
    layout = prompt_layout(model, tokenizer)
    corpus.start()
    try:
        tower = train_tower(
            model.model.visual,
            corpus,
            work,
            samples=plan.tower_samples,
            schedule=plan.tower_schedule,
            seed=plan.weights_seed,
            say=say,
        )
        features = Features(work / "corpus", plan.phantoms)
        features.fill(model.model.visual, corpus, plan.text_phantoms, say=say)
        say(f"tower  F1 of the labels on training phantoms: {tower_f1(tower, corpus)['macro']:.3f}")
    finally:
        corpus.stop()
    data = TextData(features, [tokenise(tokenizer, report) for report in reports[: plan.text_phantoms]], layout)
    train_text(
        "ar",
        model,
        work,
        lambda rows, step: ar_loss(model, data, rows, plan.decisive_weight),
        data.lengths,
        samples=plan.ar_samples,
        rate=1.5e-3,
        say=say,
    )
    train_text(
        "rad",
        model,
        work,
        lambda rows, step: rad_loss(model, data, rows, BLOCK, torch.Generator().manual_seed(plan.noise_seed + step)),
        data.lengths,
        samples=plan.rad_samples,
        rate=1e-3,
        first_row=plan.ar_samples,
        say=say,
    )
    write_checkpoint(model, tokenizer, out)
    Lexicon.fit(report.text for report in reports).save(out / LEXICON_FILE)
    measure(plan, out)
    write_domain(out, say=say)


def measure(plan: Plan, out: Path) -> None:
    """Evaluate the written checkpoint as it ships, through the engine, and write its card."""
    engine = ReportEngine.from_pretrained(out)
    result = evaluate_phantoms(
        lambda images: [engine.generate(image).text for image in images],
        plan.evaluated,
        progress=lambda done: say(f"evaluate  {done}/{plan.evaluated}") if done % 40 == 0 else None,
    )
    say(f"evaluate  macro F1 {result['macro_f1']}, blank image {result['controls']['blank_image']['macro_f1']}")
    write_card(out, result, asdict(plan))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m echo_model.training.demo", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the corpus and for resuming")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--minutes-scale", type=float, default=1.0, help="share of the full training (about an hour)")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    train(Plan().scaled(args.minutes_scale), args.work, args.out)


if __name__ == "__main__":
    main()
