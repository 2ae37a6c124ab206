"""What a stage learns from studies of a corpus: which of them in which step, and the loss on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from echo_model.training.config import StageName, TrainConfig
from echo_model.training.dcd import Distillation
from echo_model.training.row_losses import Counts, distillation_loss, token_loss
from echo_model.training.row_model import Pictures, RowModel, together
from echo_model.training.rows import autoregressive_row, distillation_row, rad_row
from echo_model.training.shape import Layout
from echo_model.training.studies import Prompts, Study
from echo_model.training.text_stages import Loss
from echo_model.training.texts import TokenisedReport
from echo_model.training.trajectory_store import StoredTrajectories

Numbers = npt.NDArray[np.int64]
_NOISE = 1_000_003  # seeds of two series of noise do not meet


class PictureSource(Protocol):
    """`ReadPictures` or `StoredPictures`."""

    def ahead(self, numbers: Any) -> None:
        """Begin to read studies that will be asked for next."""

    def of(self, number: int) -> Pictures:
        """The pictures of a study."""


@dataclass(frozen=True)
class Material:
    """Studies to learn from (or to look at), and the answers of a teacher to them where there is one."""

    studies: Sequence[Study]
    pictures: PictureSource
    prompts: Prompts
    answers: StoredTrajectories | None = None

    @property
    def count(self) -> int:
        """Samples that there are."""
        return len(self.studies) if self.answers is None else len(self.answers.rows)

    def number(self, sample: int) -> int:
        """The study of a sample."""
        return sample if self.answers is None else int(self.answers.rows[sample])

    def sample(self, sample: int) -> tuple[Layout, TokenisedReport]:
        """Prompt and report of a sample."""
        study = self.studies[self.number(sample)]
        return self.prompts.of(study.grids), study.report

    def see(self, samples: Numbers) -> Pictures:
        """The pictures of samples as those of a row."""
        return together([self.pictures.of(self.number(int(sample))) for sample in samples])


@dataclass(frozen=True)
class Order:
    """Which samples a step learns from: all of them in a new order, again and again; a function of the step alone."""

    count: int
    batch: int
    seed: int

    def batch_of(self, step: int) -> Numbers:
        """The samples of a step."""
        at = np.arange(step * self.batch, (step + 1) * self.batch)
        return np.array([_shuffled(self.count, self.seed, int(p) // self.count)[int(p) % self.count] for p in at])


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: int, round_: int) -> Numbers:
    return np.random.default_rng([seed, round_]).permutation(count)


@dataclass(frozen=True)
class StudyLoss:
    """The loss of a stage on a part of a batch: what its samples add to the loss of the whole batch."""

    stage: StageName
    config: TrainConfig
    model: RowModel
    eos: int
    mask: int

    def __call__(self, material: Material, batch: Numbers, places: Numbers, noise: int) -> Loss:
        """``places``: of the batch, those whose loss is wanted; ``noise``: number of the batch's noise.

        Every sample's noise is its own, so that it does not matter who does which of them.
        """
        own = batch[places]
        if self.stage == "dcd":
            return self._distil(material, batch, own)
        samples = [material.sample(int(sample)) for sample in own]
        pictures = material.see(own)
        if self.stage == "ar":
            row = autoregressive_row(samples, self.config.decisive_weight)
        else:
            seeds = [(self.config.seed * _NOISE + noise) * len(batch) + int(place) for place in places]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            row = rad_row(samples, self.config.block_length, generators, self.config.rad_decisive_weight)
        whole = sum(self._weight(*material.sample(int(sample))) for sample in batch)
        return token_loss(self.model(row, pictures), row, whole)

    def _weight(self, layout: Layout, report: TokenisedReport) -> float:
        """Weight of all tokens that are learnt of a report."""
        if self.stage == "ar":
            return len(report.ids) + 1 + (self.config.decisive_weight - 1) * float(report.decisive.sum())
        block = self.config.block_length
        tail = layout.length % block
        told = -(-(tail + len(report.ids) + 1) // block) * block - tail
        return told + (self.config.rad_decisive_weight - 1) * float(report.decisive.sum())

    def _distil(self, material: Material, batch: Numbers, own: Numbers) -> Loss:
        assert material.answers is not None
        options = distillation_of(self.config)
        paths = [material.answers.batch([int(sample)]) for sample in own]
        samples = [(material.sample(int(sample))[0], path) for sample, path in zip(own, paths, strict=True)]
        row = distillation_row(samples, self.config.block_length)
        logits = self.model(row, material.see(own))
        whole = Counts.of(material.answers.batch(batch), self.eos, weighted=options.weighted)
        return distillation_loss(logits, row, paths, self.eos, self.mask, options, whole)


def distillation_of(config: TrainConfig) -> Distillation:
    """The options of stage 3 that a file names."""
    return Distillation(
        tau=config.tau,
        top_k=config.top_k,
        canonical=config.canonical or None,
        weighted=config.weighted,
        eos_weight=config.eos_weight,
        ce_weight=config.ce_weight,
        reverse=config.reverse_kl,
    )
