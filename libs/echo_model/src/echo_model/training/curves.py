"""Draws the curves that the stages wrote as JSON lines: losses, and what the checks measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_CHECKED = ("macro_f1", "laterality_accuracy", "garbled_rate")


def read_curve(file: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines of losses and lines of checks. A run that was killed may have written a step twice: the later counts."""
    losses: dict[int, dict[str, Any]] = {}
    checks: dict[int, dict[str, Any]] = {}
    for line in file.read_text("utf-8").splitlines():
        entry = json.loads(line)
        (checks if "check" in entry else losses)[entry["step"]] = entry
    return [losses[step] for step in sorted(losses)], [checks[step] for step in sorted(checks)]


def draw_curves(work: Path, stages: Sequence[str], out: Path) -> None:
    """Write a PNG with a row for each stage that has a curve in ``work``: loss, scores, tokens a forward.

    Needs matplotlib (extra ``train``). Raises ValueError when no stage has one.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    there = [stage for stage in stages if (work / f"{stage}.jsonl").is_file()]
    if not there:
        raise ValueError(f"{work} holds no curve of {', '.join(stages)}")
    figure = Figure(figsize=(13, 2.6 * len(there)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(there), 3, squeeze=False)
    for (left, middle, right), stage in zip(axes, there, strict=True):
        losses, checks = read_curve(work / f"{stage}.jsonl")
        left.plot([entry["samples"] for entry in losses], [entry["loss"] for entry in losses], linewidth=0.8)
        left.set(title=f"{stage}: loss", xlabel="samples", yscale="log")
        at = [entry["samples"] for entry in checks]
        for name in _CHECKED:
            middle.plot(at, [entry["check"].get(name) for entry in checks], marker=".", label=name)
        middle.set(title=f"{stage}: held-out phantoms", xlabel="samples", ylim=(0, 1.02))
        if checks:
            middle.legend(fontsize=7)
        right.plot(at, [entry["check"].get("tokens_per_forward") for entry in checks], marker=".", color="tab:green")
        right.set(title=f"{stage}: tokens a forward", xlabel="samples")
    figure.savefig(out, dpi=110)
