"""Does a report say what the image shows? Finding-level scores on phantoms or a labelled folder, with two controls.

A text is turned into findings by ``echo_model.data.findings``; only ``present`` counts as said. Controls: the same
model on a blank image, and every report scored against the next image's truth. Both must score far lower, else the
text does not come from the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import numpy as np

from echo_model.data.findings import extract_findings
from echo_model.data.labels import FINDINGS, SIDED, Finding
from echo_model.data.phantoms import NATIVE_SIZE, generate_phantom
from echo_model.evaluation.corpus import CorpusEntry
from echo_model.evaluation.ngram_metrics import text_scores
from echo_model.images import Picture, read_image

HELD_OUT_SEED: Final = 20_260
"""Series of the phantoms that no training has seen."""

Views = Picture | list[Picture]
"""The image, or several views of one study."""
Generate = Callable[[list[Views]], list[str]]
Study = tuple[Views, dict[str, Finding], str]
"""Image or views, true findings, reference report."""


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def score_reports(truths: Sequence[dict[str, Finding]], texts: Sequence[str]) -> dict[str, Any]:
    """Scores of ``texts`` against the true findings of the same images.

    ``macro_f1``: mean over findings of the F1 of "present" (0 for one that is neither there nor said);
    ``micro_f1``: over all of them together; ``laterality_accuracy``: share of right sides among the sided findings that
    are there and said; ``exact``: share of reports with every finding and side right.
    Raises ValueError when the numbers differ or nothing is given.
    """
    if not truths or len(truths) != len(texts):
        raise ValueError(f"{len(truths)} images and {len(texts)} texts cannot be compared")
    said = [{name: m for name, m in extract_findings(text).items() if m.state == "present"} for text in texts]
    counts = {name: {"tp": 0, "fp": 0, "fn": 0} for name in FINDINGS}
    sides_right = sides = exact = 0
    for truth, mentions in zip(truths, said, strict=True):
        faultless = True
        for name in FINDINGS:
            there, told = truth[name].present, name in mentions
            if there and told:
                counts[name]["tp"] += 1
                if name in SIDED:
                    agrees = mentions[name].side == truth[name].side
                    sides += 1
                    sides_right += agrees
                    faultless &= agrees
            elif there or told:
                counts[name]["fn" if there else "fp"] += 1
                faultless = False
        exact += faultless
    per_finding = {
        name: {
            **c,
            "precision": round(_ratio(c["tp"], c["tp"] + c["fp"]), 4),
            "recall": round(_ratio(c["tp"], c["tp"] + c["fn"]), 4),
            "f1": round(_ratio(2 * c["tp"], 2 * c["tp"] + c["fp"] + c["fn"]), 4),
        }
        for name, c in counts.items()
    }
    total = {key: sum(c[key] for c in counts.values()) for key in ("tp", "fp", "fn")}
    return {
        "macro_f1": round(sum(entry["f1"] for entry in per_finding.values()) / len(FINDINGS), 4),
        "micro_f1": round(_ratio(2 * total["tp"], 2 * total["tp"] + total["fp"] + total["fn"]), 4),
        "laterality_accuracy": round(_ratio(sides_right, sides), 4),
        "exact": round(exact / len(truths), 4),
        "per_finding": per_finding,
    }


def evaluate_phantoms(
    generate: Generate,
    count: int = 200,
    seed: int = HELD_OUT_SEED,
    references: list[str] | None = None,
    *,
    batch: int = 8,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Generate reports for ``count`` phantoms of the series ``seed`` and score them, with both controls.

    ``generate`` turns images, here uint8 (H, W), into report texts, in order. The blank control asks for one report of
    a black image: decoding is deterministic, so it stands for all. ``progress`` gets the number of finished reports.
    Beside the scores of `score_reports`: those of `text_scores` against the phantoms' reports, which are appended to
    ``references`` if a list is given.
    """
    phantoms = (generate_phantom(seed, index) for index in range(count))
    studies = ((phantom.image, phantom.findings, phantom.report) for phantom in phantoms)
    return {"count": count, "seed": seed, **_evaluate(generate, studies, batch, progress, references)}


def evaluate_corpus(
    generate: Generate,
    entries: Sequence[CorpusEntry],
    references: list[str] | None = None,
    *,
    batch: int = 8,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """The same for the images of a labelled folder (see `read_corpus`); there is no ``seed``.

    Raises ImageError when an image has gone meanwhile, ValueError when there is no entry.
    """
    studies = ((_views(entry), entry.findings, entry.report) for entry in entries)
    return {"count": len(entries), **_evaluate(generate, studies, batch, progress, references)}


def _views(entry: CorpusEntry) -> Views:
    """The image of an entry, or all views of a study."""
    image = read_image(entry.image)
    return [image, *(read_image(path) for path in entry.others)] if entry.others else image


def _evaluate(
    generate: Generate,
    studies: Iterator[Study],
    batch: int,
    progress: Callable[[int], None] | None,
    references: list[str] | None,
) -> dict[str, Any]:
    """Scores, text metrics and controls. Images are drawn or read a batch at a time."""
    truths: list[dict[str, Finding]] = []
    references = [] if references is None else references
    texts: list[str] = []
    while some := list(islice(studies, batch)):
        truths.extend(findings for _, findings, _ in some)
        references.extend(report for _, _, report in some)
        texts.extend(generate([image for image, _, _ in some]))
        if progress is not None:
            progress(len(texts))
    blank = generate([np.zeros((NATIVE_SIZE, NATIVE_SIZE), dtype=np.uint8)])[0]
    shifted = truths[1:] + truths[:1]
    controls = {
        "blank_image": score_reports(truths, [blank] * len(truths)),
        "next_image": score_reports(shifted, texts),
    }
    return {
        **score_reports(truths, texts),
        **text_scores(texts, references),
        "controls": {
            name: {key: scores[key] for key in ("macro_f1", "micro_f1", "laterality_accuracy", "exact")}
            for name, scores in controls.items()
        },
        "blank_image_text": blank,
    }
