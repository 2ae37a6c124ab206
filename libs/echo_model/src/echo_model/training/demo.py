"""Trains the demonstration model: ``python -m echo_model.training.demo --work DIR --out DIR``.

Stages: vision tower as a classifier, autoregressive text, RAD (block diffusion), the teacher's reports by the canonical
rule, DCD (one step a block). Each resumes in the work folder where it was stopped (SIGTERM or a kill at any time).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from tokenizers import Tokenizer

from echo_model.engine import ReportEngine
from echo_model.evaluation import evaluate_phantoms
from echo_model.evaluation.phantoms import HELD_OUT_SEED
from echo_model.guards import LEXICON_FILE, Lexicon
from echo_model.model import load_model
from echo_model.training.agreement import says_the_same
from echo_model.training.checkpoint import BLOCK, EVALUATION_FILE, write_card, write_checkpoint, write_domain
from echo_model.training.checks import VALIDATION_SEED, Checker, held_out_features, held_out_findings
from echo_model.training.corpus import Corpus
from echo_model.training.curves import draw_curves
from echo_model.training.dcd import Distillation, distil_loss
from echo_model.training.demo_plan import AR_RATES, BATCH, DCD_RATES, RAD_RATES, Plan
from echo_model.training.features import Features, see_corpus
from echo_model.training.loop import Stopped
from echo_model.training.rollout import Trajectories, roll_out
from echo_model.training.shape import Layout, new_model, prompt_layout
from echo_model.training.text_cache import load_texts
from echo_model.training.text_stages import Loss, TextData, ar_loss, rad_loss, train_text
from echo_model.training.texts import decisive_tokens
from echo_model.training.tower import train_tower
from echo_model.training.trajectory_store import StoredTrajectories, join, write_shards

_TAKEN_TOWER = "The first samples of the tower were another checkpoint's, trained by the same program (series 1)."
_TAKEN_OVER = (
    "Tower and left-to-right stage are those of an earlier checkpoint of this program. RAD took up the weights that "
    "its RAD (14,400 samples) and DCD (9,600) had left, so both stages have seen more than is said here."
)
_DECODED_AT_ONCE = 64
_LONGEST = 192


def say(line: str) -> None:
    """Print a progress line with the time."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
    sys.stdout.flush()


class Training:
    """The stages of one run in one work folder; every method picks up what is there and returns when it is finished."""

    def __init__(self, plan: Plan, work: Path, stopped: threading.Event) -> None:
        self.plan, self.work, self.stopped = plan, work, stopped.is_set
        self.tokenizer: Tokenizer
        self.tokenizer, self.reports = load_texts(plan, work, say=say)
        self.model = new_model(self.tokenizer, plan.weights_seed)
        self.layout: Layout = prompt_layout(self.model, self.tokenizer)

    def tower(self, start: Path | None) -> Features:
        """Stage 0, from scratch or from the tower of the checkpoint ``start``, and the visual tokens of the corpus."""
        plan, visual = self.plan, self.model.model.visual
        corpus = Corpus(self.work / "corpus", plan.train_seed, plan.phantoms)
        features = Features(self.work / "corpus", plan.phantoms)
        corpus.start()
        try:
            if start is None:
                first = self.work / "tower-first"
                first.mkdir(exist_ok=True)
                train_tower(
                    visual,
                    corpus,
                    first,
                    samples=plan.tower_first,
                    schedule=plan.tower_first_schedule,
                    seed=plan.weights_seed,
                    say=say,
                    stopped=self.stopped,
                )
            else:
                visual.load_state_dict(load_model(start).model.model.visual.state_dict())
            train_tower(
                visual,
                corpus,
                self.work,
                samples=plan.tower_samples,
                schedule=plan.tower_samples,
                seed=plan.weights_seed,
                head_samples=plan.tower_heads,
                muon_rate=0.008,
                say=say,
                stopped=self.stopped,
            )
            features.fill(visual, corpus, plan.phantoms, say=say, stopped=self.stopped)
        finally:
            corpus.stop()
        return features

    def take_over(self, start: Path) -> Features:
        """Start at RAD with the weights of ``start``, a checkpoint of the same texts; the tower stays as it is."""
        model = load_model(start)
        if model.tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise ValueError(f"{start} was not trained on these texts: its tokenizer is another one")
        self.model.load_state_dict(model.model.state_dict())
        corpus = Corpus(self.work / "corpus", self.plan.train_seed, self.plan.phantoms)
        return see_corpus(self.model.model.visual, corpus, say=say, stopped=self.stopped)

    def checker(self, seed: int, count: int) -> Checker:
        """Held-out phantoms as the trained tower sees them; kept in the work folder."""
        cache = self.work / f"held-out-{seed}-{count}.pt"
        if not cache.exists():
            part = cache.with_suffix(".part")
            torch.save(held_out_features(self.model.model.visual, seed, count), part)
            part.replace(cache)
        features, truths = torch.load(cache, weights_only=True), held_out_findings(seed, count)
        return Checker(self.tokenizer, self.layout, features, truths, _LONGEST)

    def left_to_right(self, features: Features, checker: Checker) -> None:
        """Stage 1."""
        plan, model = self.plan, self.model
        data = TextData(features, self.reports, self.layout)
        train_text(
            "ar",
            model,
            self.work,
            lambda rows, step: ar_loss(model, data, rows, plan.decisive_weight),
            data.lengths,
            samples=plan.ar_samples,
            rate=AR_RATES[0],
            muon_rate=AR_RATES[1],
            batch=BATCH,
            say=say,
            check=lambda: checker.left_to_right(model),
            stopped=self.stopped,
        )
        self.write("ar")

    def blocks(self, features: Features, checker: Checker) -> None:
        """Stage 2: RAD."""
        plan, model = self.plan, self.model
        data = TextData(features, self.reports, self.layout)

        def noisy(rows: Any, step: int) -> Loss:
            noise = torch.Generator().manual_seed(plan.noise_seed + step)
            return rad_loss(model, data, rows, BLOCK, noise, decisive_weight=plan.rad_decisive_weight)

        train_text(
            "rad",
            model,
            self.work,
            noisy,
            data.lengths,
            samples=plan.rad_samples,
            rate=RAD_RATES[0],
            muon_rate=RAD_RATES[1],
            batch=BATCH,
            first_row=plan.ar_samples,
            say=say,
            check=lambda: checker.blocks(model, BLOCK, plan.tau),
            stopped=self.stopped,
        )
        self.write("rad")

    def write(self, stage: str) -> None:
        """Write the model of a stage beside its state, as a checkpoint to look at or to judge others by."""
        self._write(self.work / stage, steps=BLOCK)

    def _write(self, out: Path, *, steps: int) -> None:
        write_checkpoint(self.model, self.tokenizer, out, denoising_steps=steps)
        Lexicon.fit(self.tokenizer.decode(report.ids.tolist()) for report in self.reports).save(out / LEXICON_FILE)

    def ship(self, out: Path) -> None:
        """Write the distilled model with everything that a checkpoint has, and the curves."""
        self._write(out, steps=1)
        write_domain(out, say=say)
        stages = [stage for stage in ("tower", "ar", "rad", "dcd") if (self.work / f"{stage}.jsonl").exists()]
        draw_curves(self.work, stages, out / "curves.png")

    def teach(self, features: Features) -> StoredTrajectories:
        """Let the RAD model decode the training phantoms by the canonical rule."""
        plan = self.plan
        began = time.monotonic()

        def decode(rows: range) -> Trajectories:
            if self.stopped():
                raise Stopped(f"teacher stopped before report {rows.start}")
            parts = [
                roll_out(
                    self.model,
                    self.layout,
                    features.rows(np.array(rows[at : at + _DECODED_AT_ONCE])),
                    BLOCK,
                    tau=plan.tau,
                    top_k=plan.top_k,
                    max_tokens=_LONGEST,
                    canonical=plan.canonical,
                )
                for at in range(0, len(rows), _DECODED_AT_ONCE)
            ]
            return join(parts, self.layout.eos)

        def done(rows: int) -> None:
            say(f"teacher  {rows}/{plan.teacher_reports}  {(time.monotonic() - began) / 60:.1f} min")

        folder = self.work / "trajectories"
        write_shards(folder, decode, plan.teacher_reports, done=done)
        stored = StoredTrajectories(folder, self.layout.eos, self._agrees if plan.agreeing else None)
        say(f"teacher  {stored.counts}")
        return stored

    def _agrees(self, row: int, answer: list[int]) -> bool:
        reference = self.tokenizer.decode(self.reports[row].ids.tolist())
        return says_the_same(self.tokenizer.decode(answer), reference)

    def distil(self, features: Features, stored: StoredTrajectories, checker: Checker) -> None:
        """Stage 3: one step a block."""
        plan, model = self.plan, self.model
        options = Distillation(
            tau=plan.tau,
            top_k=plan.top_k,
            canonical=plan.canonical,
            ce_weight=plan.ce_weight,
            decisive=decisive_tokens(self.tokenizer),
            decisive_weight=plan.dcd_decisive_weight,
        )

        def loss(places: Any, step: int) -> Loss:
            paths = stored.batch(places)
            return distil_loss(model, self.layout, features.rows(stored.rows[places]), paths, BLOCK, options)

        train_text(
            "dcd",
            model,
            self.work,
            loss,
            stored.lengths,
            samples=plan.dcd_samples,
            rate=DCD_RATES[0],
            muon_rate=DCD_RATES[1],
            batch=BATCH,
            say=say,
            check=lambda: checker.blocks(model, BLOCK, 0.0),
            stopped=self.stopped,
        )

    def staged_scores(self, start: Path | None) -> dict[str, dict[str, float]]:
        """What the models of all stages score on the held-out phantoms, by stage and way of decoding.

        ``start``: the checkpoint that RAD began with, if AR was its stage.
        """
        checker = self.checker(HELD_OUT_SEED, self.plan.evaluated)
        scores: dict[str, dict[str, float]] = {}
        if start is not None:  # the stage that was not run here
            scores["ar"] = json.loads((start / EVALUATION_FILE).read_text("utf-8"))["stages"]["ar"]

        def weights(stage: str) -> None:
            state = torch.load(self.work / f"{stage}.state.pt", weights_only=True, map_location="cpu")
            self.model.load_state_dict(state["weights"])

        if start is None:
            weights("ar")
            scores["ar"] = checker.left_to_right(self.model)
        say(f"evaluate  ar {scores['ar']}")
        ways = (("rad", "rad", self.plan.tau), ("rad_one_step", "rad", 0.0), ("dcd_one_step", "dcd", 0.0))
        for name, stage, tau in ways:
            weights(stage)
            scores[name] = checker.blocks(self.model, BLOCK, tau)
            say(f"evaluate  {name} {scores[name]}")
        return scores


def train(
    plan: Plan, work: Path, out: Path, *, tower: Path | None, model: Path | None, stopped: threading.Event
) -> None:
    """Run every stage that is not finished yet in ``work`` and write the checkpoint to ``out``.

    ``tower``: a checkpoint whose vision tower is the start of stage 0. ``model``: a checkpoint that is taken over
    whole, RAD being the first stage. Raises Stopped once ``stopped`` is set.
    """
    work.mkdir(parents=True, exist_ok=True)
    plan = plan.of_folder(work)
    training = Training(plan, work, stopped)
    features = training.tower(tower) if model is None else training.take_over(model)
    checker = training.checker(VALIDATION_SEED, plan.checked)
    if model is None:
        training.left_to_right(features, checker)
    training.blocks(features, checker)
    training.distil(features, training.teach(features), checker)
    training.ship(out)
    stages = training.staged_scores(model)
    measure(plan, out, stages, start=_TAKEN_OVER if model else _TAKEN_TOWER if tower else "")


def measure(plan: Plan, out: Path, stages: dict[str, dict[str, float]], *, start: str = "") -> None:
    """Evaluate the written checkpoint as it ships, through the engine, and write its card."""
    engine = ReportEngine.from_pretrained(out)
    result = evaluate_phantoms(
        lambda images: [engine.generate(image).text for image in images],
        plan.evaluated,
        progress=lambda done: say(f"evaluate  {done}/{plan.evaluated}") if done % 40 == 0 else None,
    )
    say(f"evaluate  macro F1 {result['macro_f1']}, blank image {result['controls']['blank_image']['macro_f1']}")
    write_card(out, result, asdict(plan), stages, start=start)


def main() -> None:
    """Command line. A stop by SIGTERM or SIGINT saves the state first."""
    parser = argparse.ArgumentParser(prog="python -m echo_model.training.demo", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the corpus and for resuming")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--tower", type=Path, help="checkpoint whose vision tower is trained further (default: none)")
    parser.add_argument("--model", type=Path, help="checkpoint that is taken over whole: RAD is the first stage")
    parser.add_argument("--minutes-scale", type=float, default=1.0, help="share of the full training (about 4 hours)")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    try:
        train(
            Plan().scaled(args.minutes_scale), args.work, args.out, tower=args.tower, model=args.model, stopped=stopped
        )
    except Stopped as end:
        say(f"{end}; the same command goes on from here")


if __name__ == "__main__":
    main()
