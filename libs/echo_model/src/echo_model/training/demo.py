"""Trains the demonstration model: ``python -m echo_model.training.demo --work DIR --out DIR``.

Stages: vision tower as a classifier, autoregressive text, RAD (block diffusion). Each resumes in the work folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from echo_model.data.tokenizer import train_tokenizer
from echo_model.training.corpus import Corpus, training_report
from echo_model.training.shape import QUESTION, new_model
from echo_model.training.tower import tower_f1, train_tower


@dataclass(frozen=True)
class Plan:
    """How much each stage sees, in samples, and the seeds."""

    train_seed: int = 1
    weights_seed: int = 7
    phantoms: int = 16_000
    tower_samples: int = 22_000
    ar_samples: int = 15_000
    rad_samples: int = 12_000
    tokenizer_reports: int = 4_000

    def scaled(self, factor: float) -> Plan:
        """The same plan for ``factor`` times the training time."""
        if factor <= 0:
            raise ValueError("the scale must be positive")
        return replace(
            self,
            phantoms=max(64, int(self.phantoms * factor)),
            tower_samples=int(self.tower_samples * factor),
            ar_samples=int(self.ar_samples * factor),
            rad_samples=int(self.rad_samples * factor),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes-scale", type=float, default=1.0)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    plan = Plan().scaled(args.minutes_scale)
    args.work.mkdir(parents=True, exist_ok=True)
    say = lambda line: print(line, flush=True)
    corpus = Corpus(args.work / "corpus", plan.train_seed, plan.phantoms)
    corpus.start()
    tok = train_tokenizer((training_report(plan.train_seed, i).text for i in range(plan.tokenizer_reports)), QUESTION)
    model = new_model(tok, plan.weights_seed)
    train_tower(model.model.visual, corpus, args.work, samples=plan.tower_samples, seed=plan.weights_seed, say=say)


if __name__ == "__main__":
    main()
