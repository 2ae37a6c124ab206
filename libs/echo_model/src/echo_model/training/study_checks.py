"""A look at the split `validate` while a training runs: the stage's own loss, and the text of a few studies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer

from echo_model.evaluation.corpus import said_findings
from echo_model.evaluation.ngram_metrics import text_scores
from echo_model.evaluation.phantoms import score_reports
from echo_model.training.autoregressive import decode_left_to_right
from echo_model.training.config import StageName
from echo_model.training.parallel import Share
from echo_model.training.row_model import RowModel
from echo_model.training.shape import Layout
from echo_model.training.studies import Prompts, Study
from echo_model.training.study_losses import PictureSource
from echo_model.training.study_rollout import roll_out_studies

_AT_ONCE = 8


@dataclass(frozen=True)
class TextCheck:
    """Decodes studies as the stage's model is meant to be, and compares with their reports."""

    stage: StageName
    studies: Sequence[Study]
    pictures: PictureSource
    prompts: Prompts
    tokenizer: Tokenizer
    block: int
    tau: float
    longest: int
    share: Share

    @torch.no_grad()
    def scores(self, model: RowModel) -> dict[str, float]:
        """`text_scores`, and how the findings of both texts agree. Every process decodes a part."""
        own = self.share.own(range(len(self.studies))).tolist()
        said: list[tuple[int, str]] = []
        for start in range(0, len(own), _AT_ONCE):
            numbers = own[start : start + _AT_ONCE]
            said += zip(numbers, self._decode(model, numbers), strict=True)
        texts = [text for _, text in sorted(self.share.gather(said))]
        references = [study.text for study in self.studies]
        findings = score_reports([said_findings(text) for text in references], texts)
        return text_scores(texts, references) | {key: findings[key] for key in ("macro_f1", "micro_f1")}

    def _decode(self, model: RowModel, numbers: Sequence[int]) -> list[str]:
        features = [model.see(self.pictures.of(number)) for number in numbers]
        layouts = [self.prompts.of(self.studies[number].grids) for number in numbers]
        with model.computing():
            if self.stage == "ar":
                answers = [
                    decode_left_to_right(model.model, _on(layout, model.device), seen[None], max_tokens=self.longest)[
                        0
                    ][0]
                    for layout, seen in zip(layouts, features, strict=True)
                ]
            else:
                tau = 0.0 if self.stage == "dcd" else self.tau
                paths = roll_out_studies(
                    model.model, layouts, features, self.block, tau=tau, top_k=1, max_tokens=self.longest
                )
                answers = [ids[step > 0] for ids, step in zip(paths.ids, paths.step, strict=True)]
        eos = self.prompts.eos
        return [str(self.tokenizer.decode([int(i) for i in answer if int(i) != eos])) for answer in answers]


def _on(layout: Layout, device: torch.device) -> Layout:
    moved = {name: getattr(layout, name).to(device) for name in ("prompt", "image_at", "positions")}
    return replace(layout, **moved)


@torch.no_grad()
def mean_loss(batches: int, loss_of: Callable[[int], Any], share: Share) -> float:
    """Mean over some batches of the loss that the processes share."""
    total = sum(float(loss_of(number)[0]) for number in range(batches))
    return float(sum(share.gather([total]))) / batches
