"""The rows of the comparison: which model, how it is decoded, and what is measured of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer

from echo_model.bench_loops import OwnAutoregressive
from echo_model.data.phantoms import Phantom, generate_phantom
from echo_model.decoding import prepare_prompt
from echo_model.engine import ReportEngine
from echo_model.evaluation.ngram_metrics import text_scores
from echo_model.evaluation.perplexity import Judge
from echo_model.evaluation.phantoms import HELD_OUT_SEED, score_reports
from echo_model.guard_settings import DEFAULT_GATE, GuardSettings
from echo_model.guards import LEXICON_FILE, Lexicon, defects
from echo_model.images import n_image_tokens, preprocess
from echo_model.model import LoadedModel, load_model
from echo_model.prompt import build_prompt, split_sentences
from echo_model.report import Report
from echo_model.settings import GenerationSettings
from echo_model.text_model import TextModel
from echo_model.training.autoregressive import decode_left_to_right
from echo_model.training.checkpoint import write_checkpoint
from echo_model.training.checks import held_out_features
from echo_model.training.shape import Layout
from echo_model.unmasking import RemaskingStrategy

_LONGEST = 192
_BATCH = 64
_SPEED_REPORTS, _SPEED_ROUNDS, _SPEED_TOKENS = 6, 3, 64


@dataclass(frozen=True)
class Row:
    """`model`: see `variants`; `block` 0 decodes left to right. `style` of the reports it learnt from."""

    name: str
    title: str
    model: str
    block: int = 8
    steps: int = 1
    strategy: RemaskingStrategy = "low_confidence_dynamic"
    threshold: float = 0.85
    gate: float | None = None
    style: str = "normalised"

    @property
    def settings(self) -> GenerationSettings:
        """How the engine decodes it: no guard rail but the gate, if the row has one."""
        return GenerationSettings(
            block_length=self.block,
            denoising_steps=self.steps,
            remasking_strategy=self.strategy,
            confidence_threshold=self.threshold,
            gen_length=_LONGEST,
            guards=GuardSettings(
                gate=self.gate, redenoise=False, garble=False, lexicon=False, contradiction=False, domain=False
            ),
        )


ROWS: Final = (
    Row("ar", "AR (stage 1)", "ar", block=0),
    Row("rad_95", "RAD, threshold 0.95", "rad8", steps=8, threshold=0.95),
    Row("rad_85", "RAD, threshold 0.85", "rad8", steps=8),
    Row("rad_70", "RAD, threshold 0.70", "rad8", steps=8, threshold=0.7),
    Row("rad_one_step", "RAD forced to one step", "rad8"),
    Row("dcd4", "DCD, block 4", "dcd4", block=4),
    Row("dcd8", "DCD, block 8", "dcd8"),
    Row("dcd8_gated", "DCD, block 8, gated", "dcd8", gate=DEFAULT_GATE),
    Row("dcd16", "DCD, block 16", "dcd16", block=16),
    Row("dcd_canonical", "DCD, canonical trajectories (ours)", "dcd_canonical"),
    Row("dcd_canonical_gated", "the same, gated", "dcd_canonical", gate=DEFAULT_GATE),
    Row("dcd_agreeing", "the same, wrong answers left out (ours)", "dcd_agreeing"),
    Row("dcd_canonical_ce", "DCD, canonical, with cross-entropy", "dcd_canonical_ce"),
    Row("ce_canonical_ar", "cross-entropy on canonical AR answers", "ce_canonical_ar"),
    Row("ce_canonical_ar_gated", "the same, gated", "ce_canonical_ar", gate=DEFAULT_GATE),
    Row("dparallel", "dParallel, entropy threshold", "dparallel", steps=8, strategy="entropy_bounded"),
    Row("t3d", "T3D, two tokens a pass", "t3d", steps=4, strategy="low_confidence_static"),
    Row("consistency", "adjacent-state consistency (CD4LM-like)", "consistency"),
    Row("dcd_unweighted", "DCD without weights by step", "dcd_unweighted"),
    Row("dcd_no_eos", "DCD without the end-token term", "dcd_no_eos"),
    Row("dcd_reverse", "DCD with reverse divergence", "dcd_reverse"),
    Row("ar_raw", "AR on reports by exception", "ar_raw", block=0, style="raw"),
    Row("dcd_raw", "DCD on reports by exception", "dcd_raw", style="raw"),
)


@dataclass
class Measure:
    """What all rows of one seed and style are measured with: held-out phantoms, the judge, words of the training."""

    tokenizer: Tokenizer
    layout: Layout
    judge: Any
    texts: Sequence[str]
    count: int
    folder: Path

    @cached_property
    def phantoms(self) -> list[Phantom]:
        """Held-out phantoms."""
        return [generate_phantom(HELD_OUT_SEED, index) for index in range(self.count)]

    @cached_property
    def lexicon(self) -> Lexicon:
        """Words and their order in the training reports of this style."""
        return Lexicon.fit(self.texts)

    def stored(self, model: Any, name: str) -> LoadedModel:
        """The model as it would ship: written as a checkpoint and read again."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        write_checkpoint(model, self.tokenizer, folder)
        self.lexicon.save(folder / LEXICON_FILE)
        return load_model(folder)

    def garbled(self, texts: Sequence[str]) -> float:
        """Share of sentences with a defect in them."""
        sentences = [sentence for text in texts for sentence in split_sentences(text)]
        return sum(bool(defects(sentence, self.lexicon)) for sentence in sentences) / max(1, len(sentences))


def measure_row(row: Row, model: Any, measure: Measure) -> dict[str, Any]:
    """Write reports on the held-out phantoms and score them.

    Speed is measured one report at a time, left-to-right decoding of the judge beside it in the same minute:
    ``tokens_per_second`` and ``speed_up`` are medians over rounds, the prompt's pass left out of both.
    """
    judge = measure.stored(measure.judge, "judge")
    layers = TextModel(judge.model, packed=True)
    images = [phantom.image for phantom in measure.phantoms]
    references = [phantom.raw_report if row.style == "raw" else phantom.report for phantom in measure.phantoms]
    if row.block == 0:
        texts, passes = _left_to_right(model, measure), 1.0
        speed = median(_ar_speed(judge, layers, image) for image in images[:_SPEED_REPORTS])
        ratio = 1.0
    else:
        with ReportEngine(measure.stored(model, "student")) as engine:
            futures = [engine.submit(image, row.settings) for image in images]
            reports = [future.result() for future in futures]
            rounds = [_round(engine, judge, layers, images[:_SPEED_REPORTS], row) for _ in range(_SPEED_ROUNDS)]
        texts = [report.text for report in reports]
        passes = sum(r.stats.tokens for r in reports) / sum(r.stats.forward_passes for r in reports)
        speed = median(fast for fast, _ in rounds)
        ratio = median(fast / slow for fast, slow in rounds)
    reader = Judge(judge)
    reader.add_all(images, texts)
    scores = score_reports([phantom.findings for phantom in measure.phantoms], texts)
    text = text_scores(texts, references)
    return {
        "macro_f1": scores["macro_f1"],
        "laterality_accuracy": scores["laterality_accuracy"],
        "exact": scores["exact"],
        "rouge_l": text["rouge_l"],
        "cider": text["cider"],
        "garbled_rate": round(measure.garbled(texts), 4),
        "perplexity": round(reader.perplexity, 4),
        "tokens_per_forward": round(passes, 3),
        "tokens_per_second": round(speed, 1),
        "speed_up": round(ratio, 3),
    }


def _left_to_right(model: Any, measure: Measure) -> list[str]:
    features = held_out_features(model.model.visual, HELD_OUT_SEED, measure.count)
    texts: list[str] = []
    for part in torch.split(features, _BATCH):
        ids, _ = decode_left_to_right(model, measure.layout, part, max_tokens=_LONGEST)
        texts += [measure.tokenizer.decode([i for i in row if i != measure.layout.eos]) for row in ids.tolist()]
    return texts


def _round(
    engine: ReportEngine, judge: LoadedModel, layers: TextModel, images: Sequence[Any], row: Row
) -> tuple[float, float]:
    """Tokens a second of the row and of left-to-right decoding, one report after the other, taking turns."""
    reports: list[Report] = []
    slow = []
    for image in images:
        reports.append(engine.generate(image, row.settings))
        slow.append(_ar_speed(judge, layers, image))
    return sum(r.stats.tokens for r in reports) / sum(r.stats.decode_seconds for r in reports), median(slow)


@torch.inference_mode()
def _ar_speed(judge: LoadedModel, layers: TextModel, image: Any) -> float:
    """Tokens a second of left-to-right decoding on the engine's own layers."""
    pixels, grid = preprocess(image, judge.image_config)
    ids = build_prompt(judge.tokenizer, [n_image_tokens(grid, judge.image_config)])
    prompt = prepare_prompt(
        judge.model, torch.tensor(ids), torch.from_numpy(pixels), torch.from_numpy(np.stack([grid]))
    )
    mask = int(judge.generation_config["mask_token_id"])
    timing = OwnAutoregressive(layers, prompt, _SPEED_TOKENS, mask).decode()
    return _SPEED_TOKENS / timing.seconds
