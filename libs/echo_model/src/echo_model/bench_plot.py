"""The figures of `echo-model bench` as a picture: tokens a second of every way to decode, with their spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from echo_model.errors import SettingsError

_COLOURS = {"fused": "#1b6ca8", "unfused": "#7fb2d9", "own": "#5a9367", "plain": "#d98e32", "Hugging": "#b5534a"}


def plot(result: dict[str, Any], file: Path) -> None:
    """Write a PNG: a panel for every batch. Raises SettingsError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise SettingsError("--png needs matplotlib (pip install 'echo-model[bench]')") from None
    rows = [row for row in result["rows"] if row["kind"] == "decode"]
    batches = sorted({row["batch"] for row in rows})
    panels = [[row for row in rows if row["batch"] == batch] for batch in batches]
    heights = [len(panel) + 1.2 for panel in panels]
    figure = Figure(figsize=(8.0, 0.34 * sum(heights) + 1.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axis, panel, batch in zip(axes, panels, batches, strict=True):
        _panel(axis, sorted(panel, key=lambda row: row["tokens_per_second"]["median"]), batch)
    axes[-1].set_xlabel("tokens per second, median; whiskers: slowest and fastest round", fontsize=8)
    count = result["threads"]
    threads = "" if result["device"] == "cuda" else f", {count} thread{'s' * (count > 1)}"
    figure.suptitle(
        f"Decoding, {result['shape']} shape, {result['dtype']}{threads}\n{result['machine']}",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    figure.savefig(file, dpi=120)


def _panel(axis: Any, rows: list[dict[str, Any]], batch: int) -> None:
    speeds = [row["tokens_per_second"] for row in rows]
    middle = [speed["median"] for speed in speeds]
    spread = [
        [speed["median"] - speed["min"] for speed in speeds],
        [speed["max"] - speed["median"] for speed in speeds],
    ]
    colours = [_COLOURS[row["variant"].split()[0]] for row in rows]
    names = [row["variant"] for row in rows]
    axis.barh(names, middle, color=colours, height=0.68, xerr=spread, error_kw={"ecolor": "#333333", "capsize": 2.5})
    widest = max(speed["max"] for speed in speeds)
    for place, speed in enumerate(speeds):
        axis.text(speed["max"] + 0.012 * widest, place, f"{speed['median']:,.0f}", va="center", fontsize=8)
    axis.set_xlim(0, 1.1 * widest)
    axis.set_title("one report" if batch == 1 else f"{batch} reports together", fontsize=9, loc="left")
    axis.tick_params(labelsize=8)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)
    axis.grid(axis="x", color="#dddddd", linewidth=0.7)
