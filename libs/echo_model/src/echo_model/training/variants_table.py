"""From the figures of all seeds to one table, and what they say about the claims of the method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Final

import torch

from echo_model.bench import describe_machine
from echo_model.training.variants_rows import ROWS

HIGHER: Final = {"macro_f1": True, "rouge_l": True, "cider": True, "garbled_rate": False, "perplexity": False}


@dataclass(frozen=True)
class Claim:
    """`better` should beat `worse`, judged on `figures`; a figure counts when all seeds agree on it."""

    text: str
    better: str
    worse: str
    figures: tuple[str, ...] = ("macro_f1", "rouge_l", "garbled_rate")


CLAIMS: Final = (
    Claim("one step breaks the several-step model", "rad_85", "rad_one_step"),
    Claim("DCD restores one step", "dcd8", "rad_one_step"),
    Claim("weights by step help", "dcd8", "dcd_unweighted"),
    Claim("the end-token term helps", "dcd8", "dcd_no_eos"),
    Claim("forward divergence beats reverse", "dcd8", "dcd_reverse"),
    Claim("normalised reports beat reports by exception", "dcd8", "dcd_raw"),
    Claim("DCD beats dParallel", "dcd8", "dparallel"),
    Claim("DCD beats T3D", "dcd8", "t3d"),
    Claim("DCD beats adjacent-state consistency", "dcd8", "consistency"),
    Claim("canonical trajectories help (ours)", "dcd_canonical", "dcd8"),
    Claim("leaving out wrong answers helps (ours)", "dcd_agreeing", "dcd_canonical"),
    Claim("the gate helps (ours)", "dcd8_gated", "dcd8"),
)


def verdict(claim: Claim, figures: dict[str, dict[str, Sequence[float]]]) -> dict[str, Any]:
    """Confirmed, refuted or not seen, from the differences of the same seed: {row: {figure: a value a seed}}.

    A figure speaks when every seed has the same sign and the mean difference exceeds the spread of the differences. A
    claim is confirmed when some figure speaks for it and none against it, refuted when some speaks against it and none
    for it; anything else, and fewer than two seeds, is "not seen".
    """
    if claim.better not in figures or claim.worse not in figures:
        return {"claim": claim.text, "verdict": "not measured", "differences": {}}
    signs: dict[str, int] = {}
    differences: dict[str, list[float]] = {}
    for name in claim.figures:
        pairs = list(zip(figures[claim.better][name], figures[claim.worse][name], strict=True))
        gains = [(a - b) if HIGHER[name] else (b - a) for a, b in pairs]
        differences[name] = [round(gain, 4) for gain in gains]
        agree = len(gains) > 1 and (min(gains) > 0 or max(gains) < 0)
        clear = abs(mean(gains)) > max(gains) - min(gains)
        signs[name] = (1 if gains[0] > 0 else -1) if agree and clear else 0
    pro, contra = 1 in signs.values(), -1 in signs.values()
    word = "confirmed" if pro and not contra else "refuted" if contra and not pro else "not seen"
    return {"claim": claim.text, "better": claim.better, "worse": claim.worse, "verdict": word, "gains": differences}


def _of_table(table: dict[str, Any]) -> dict[str, dict[int, dict[str, float]]]:
    """The figures of every row and seed of a table that `collect` made."""
    return {
        row["name"]: {
            seed: {key: spread["seeds"][place] for key, spread in row["figures"].items()}
            for place, seed in enumerate(row["seeds"])
        }
        for row in table["rows"]
    }


def collect(work: Path, budget: dict[str, int], earlier: dict[str, Any] | None = None) -> dict[str, Any]:
    """All rows that are there: mean, lowest and highest over the seeds, and the verdicts.

    A row counts only seeds that have it; a claim only seeds that have both of its rows. `earlier`: a table whose seeds
    are taken over where the folder has none, so that seeds may be run on different days or machines. Raises ValueError
    for one of another budget.
    """
    if earlier is not None and earlier["budget"] != budget:
        raise ValueError("the table that is there is of another budget: write to another file")
    machine = describe_machine(torch.device("cpu"))
    known = earlier["machines"] if earlier else []
    found = _of_table(earlier) if earlier else {}
    for row in ROWS:
        for folder in work.glob("seed*"):
            file = folder / "rows" / f"{row.name}.json"
            if file.is_file():
                seed = int(folder.name.removeprefix("seed"))
                found.setdefault(row.name, {})[seed] = json.loads(file.read_text("utf-8"))
    seeds = sorted({seed for of_seeds in found.values() for seed in of_seeds})
    rows = []
    for row in ROWS:
        if row.name in found:
            of_seeds = found[row.name]
            figures = {
                key: {
                    "mean": round(mean(values), 4),
                    "min": min(values),
                    "max": max(values),
                    "seeds": values,
                }
                for key in next(iter(of_seeds.values()))
                if (values := [of_seeds[seed][key] for seed in sorted(of_seeds)])
            }
            rows.append({"name": row.name, "title": row.title, "seeds": sorted(of_seeds), "figures": figures})
    verdicts = []
    for claim in CLAIMS:
        common = sorted(found.get(claim.better, {}).keys() & found.get(claim.worse, {}).keys())
        table: dict[str, dict[str, Sequence[float]]] = {
            name: {key: [found[name][seed][key] for seed in common] for key in claim.figures}
            for name in (claim.better, claim.worse)
            if common
        }
        verdicts.append(verdict(claim, table) | {"seeds": common})
    return {
        "machines": known if machine in known else [*known, machine],
        "budget": budget,
        "seeds": seeds,
        "rows": rows,
        "claims": verdicts,
    }
