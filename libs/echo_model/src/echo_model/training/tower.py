"""Stage 0: the vision tower learns to see before it learns to tell.

Trained from scratch together with a language model, the tower stays blind: the text's own statistics explain too much
of the loss. As a classifier with labels for every visual token it learns in minutes. The heads are thrown away.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from echo_model.data.labels import DENSE_LABELS
from echo_model.training.corpus import Corpus
from echo_model.training.loop import run_stage
from echo_model.training.optim import Muon, Optimizers, split_for_muon
from echo_model.training.shape import TEXT_HIDDEN, VISUAL_TOKENS, encode_grey

DENSE_WEIGHT = 5.0


class Classifier(torch.nn.Module):
    """The tower with two linear heads: one on all visual tokens together, one on each."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        self.whole = torch.nn.Linear(VISUAL_TOKENS * TEXT_HIDDEN, len(DENSE_LABELS))
        self.each = torch.nn.Linear(TEXT_HIDDEN, len(DENSE_LABELS))
        torch.nn.init.normal_(self.whole.weight, std=0.002)
        torch.nn.init.constant_(self.whole.bias, -1.5)
        torch.nn.init.constant_(self.each.bias, -4.0)

    def forward(self, pixels: npt.NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, labels) and (B, VISUAL_TOKENS, labels)."""
        features = encode_grey(self.visual, pixels)
        return self.whole(features.flatten(1)), self.each(features)


def train_tower(
    visual: Any,
    corpus: Corpus,
    work: Path,
    *,
    samples: int,
    schedule: int,
    batch: int = 24,
    seed: int = 0,
    head_samples: int = 0,
    muon_rate: float = 0.02,
    stop_after: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Classifier:
    """Train the tower in place for ``samples`` images; returns it with its heads.

    ``schedule``: number of images at which the learning rate's cosine ends, ``samples`` or more. ``head_samples``: a
    tower that can see already gets new heads first, itself frozen: the gradients of untrained heads would harm it.
    """
    torch.manual_seed(seed)
    classifier = Classifier(visual).train()
    if head_samples:
        visual.requires_grad_(False)
        heads = [p for p in classifier.parameters() if p.requires_grad]
        learner = Optimizers([torch.optim.AdamW(heads, lr=2e-3, weight_decay=0.01)], head_samples // batch, warmup=10)
        loss = _loss(classifier, corpus, batch)
        run_stage("heads", work, classifier, learner, loss, steps=head_samples // batch, batch=batch, say=say)
        visual.requires_grad_(True)
    hidden, rest = split_for_muon(classifier, keep=("whole", "each"))
    steps = samples // batch
    optimizers = Optimizers(
        [Muon(hidden, lr=muon_rate), torch.optim.AdamW(rest, lr=1e-3, weight_decay=0.01)], schedule // batch, warmup=30
    )
    loss = _loss(classifier, corpus, batch)
    run_stage(
        "tower",
        work,
        classifier,
        optimizers,
        loss,
        steps=steps,
        batch=batch,
        stop_after=stop_after,
        say=say,
        stopped=stopped,
    )
    return classifier.eval()


def _loss(classifier: Classifier, corpus: Corpus, batch: int) -> Callable[[int], tuple[torch.Tensor, dict[str, float]]]:
    """The loss of a step: the image's labels, and those of every visual token."""

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        pixels, labels, dense = corpus.batch(corpus.rows(step, batch))
        whole, each = classifier(pixels)
        truth = torch.from_numpy(labels)
        image_loss = functional.binary_cross_entropy_with_logits(whole, truth)
        cell_loss = functional.binary_cross_entropy_with_logits(each, torch.from_numpy(dense))
        hits = (whole.detach() > 0).float()
        f1 = 2 * (hits * truth).sum() / (hits.sum() + truth.sum()).clamp(min=1)
        figures = {"image": float(image_loss.detach()), "cells": float(cell_loss.detach()), "f1": float(f1)}
        return image_loss + DENSE_WEIGHT * cell_loss, figures

    return loss_of


@torch.no_grad()
def tower_f1(classifier: Classifier, corpus: Corpus, count: int = 400) -> dict[str, float]:
    """F1 of every image label and their mean on the first ``count`` phantoms of a corpus."""
    scores, truths = [], []
    for start in range(0, min(count, corpus.count), 16):
        pixels, labels, _ = corpus.batch(np.arange(start, min(start + 16, count, corpus.count)))
        scores.append((classifier(pixels)[0] > 0).numpy())
        truths.append(labels > 0)
    guess, truth = np.concatenate(scores), np.concatenate(truths)
    both, either = (guess & truth).sum(0), guess.sum(0) + truth.sum(0)
    result = {name: float(2 * b / max(1, e)) for name, b, e in zip(DENSE_LABELS, both, either, strict=True)}
    result["macro"] = float(np.mean(list(result.values())))
    return result
