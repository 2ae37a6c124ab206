"""Small evaluations during training: phantoms that no training sees, decoded in batches, scored by finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer

from echo_model.data.labels import Finding
from echo_model.data.phantoms import draw_findings, generate_phantom, stream
from echo_model.evaluation.phantoms import score_reports
from echo_model.guards import garble_flags
from echo_model.prompt import parse_sections, split_sentences
from echo_model.training.autoregressive import decode_left_to_right
from echo_model.training.corpus import model_pixels
from echo_model.training.rollout import Trajectories, roll_out
from echo_model.training.shape import Layout, encode_grey

VALIDATION_SEED: Final = 50_505
"""Series for looking at a training while it runs; the final figures come from another one."""

_BATCH = 64


@dataclass(frozen=True)
class Checker:
    """Held-out phantoms with their visual tokens (N, V, H)."""

    tokenizer: Tokenizer
    layout: Layout
    features: torch.Tensor
    truths: Sequence[dict[str, Finding]]
    max_tokens: int = 160

    def left_to_right(self, model: Any, canonical: float | None = None) -> dict[str, float]:
        """Scores of greedy decoding, a token at a time."""
        ids = [
            decode_left_to_right(model, self.layout, part, max_tokens=self.max_tokens, canonical=canonical)[0]
            for part in torch.split(self.features, _BATCH)
        ]
        answers = [self._text(row) for part in ids for row in part]
        return self._scores(answers) | {"tokens_per_forward": 1.0}

    def blocks(self, model: Any, block: int, tau: float, canonical: float | None = None) -> dict[str, float]:
        """Scores of block decoding: every token with confidence ``tau`` or more at once; 0 is one step a block."""
        texts: list[str] = []
        tokens = passes = 0
        for part in torch.split(self.features, _BATCH):
            paths = roll_out(
                model,
                self.layout,
                part,
                block,
                tau=tau,
                top_k=1,
                max_tokens=self.max_tokens,
                canonical=canonical,
            )
            texts += self.texts(paths)
            tokens += int((paths.step > 0).sum() - paths.ended.sum())
            passes += int(paths.step.reshape(len(paths.step), -1, block).amax(dim=2).sum())
        return self._scores(texts) | {"tokens_per_forward": round(tokens / max(1, passes), 3)}

    def texts(self, paths: Trajectories) -> list[str]:
        """The answers' texts."""
        return [self._text(ids[step > 0]) for ids, step in zip(paths.ids, paths.step, strict=True)]

    def _text(self, ids: torch.Tensor) -> str:
        return str(self.tokenizer.decode([int(i) for i in ids if int(i) != self.layout.eos]))

    def _scores(self, texts: list[str]) -> dict[str, float]:
        scores = score_reports(self.truths, texts)
        sentences = [sentence for text in texts for sentence in split_sentences(text)]
        garbled = sum(bool(garble_flags(sentence)) for sentence in sentences) / max(1, len(sentences))
        return {
            "macro_f1": scores["macro_f1"],
            "lowest_f1": min(entry["f1"] for entry in scores["per_finding"].values()),
            "laterality_accuracy": scores["laterality_accuracy"],
            "exact": scores["exact"],
            "garbled_rate": round(garbled, 4),
            "sections": round(float(np.mean([not parse_sections(text).errors for text in texts])), 4),
        }


@torch.no_grad()
def held_out_features(visual: Any, seed: int, count: int) -> torch.Tensor:
    """Visual tokens (count, V, H) of the first phantoms of a series."""
    features = []
    for start in range(0, count, _BATCH):
        images = [model_pixels(generate_phantom(seed, i).image) for i in range(start, min(count, start + _BATCH))]
        features.append(encode_grey(visual, np.stack(images)))
    return torch.cat(features)


def held_out_findings(seed: int, count: int) -> list[dict[str, Finding]]:
    """What these phantoms show."""
    return [draw_findings(stream(seed, index, 0)) for index in range(count)]
