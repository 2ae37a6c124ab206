"""What the gate and the second attempts cost and gain, on phantoms that no training saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from echo_model.data.phantoms import generate_phantom
from echo_model.engine import ReportEngine
from echo_model.guard_settings import GuardSettings
from echo_model.guards import GARBLED
from echo_model.report import Report
from echo_model.settings import GenerationSettings

_OFF = GuardSettings(gate=None, redenoise=False)


def measure_rails(folder: Path, phantoms: int, seed: int, *, gate: float) -> dict[str, Any]:
    """Decode `phantoms` images of series `seed` with the rails off and on.

    Once in one step a block, forced if the checkpoint was not distilled to it, once with the checkpoint's own number
    of steps. Every row: share of garbled sentences (`garbled_rate`, by the checks themselves), share of sentences that
    the same model also writes with its most careful decoding (`agrees`, a judgement that the checks have no part in),
    passes, tokens a pass, share of blocks gated and decoded anew. Under `one_step`, what each rail removes of the
    garbled sentences and how many more passes it takes. Raises CheckpointError.
    """
    engine = ReportEngine.from_pretrained(folder)
    images = [generate_phantom(seed, index).image for index in range(phantoms)]
    own = engine.loaded.generation_config
    size = int(own.get("block_length", 8))
    rails = {
        "off": _OFF,
        "gate": replace(_OFF, gate=gate),
        "redenoise": replace(_OFF, redenoise=True),
        "gate and redenoise": replace(_OFF, gate=gate, redenoise=True),
    }

    def decode(steps: int | None, guards: GuardSettings) -> list[Report]:
        settings = GenerationSettings(denoising_steps=steps, guards=guards)
        futures = [engine.submit(image, settings) for image in images]
        return [future.result() for future in futures]

    careful = [{sentence.text for sentence in report.sentences} for report in decode(size, _OFF)]
    result: dict[str, Any] = {
        "phantoms": phantoms,
        "seed": seed,
        "gate": gate,
        "own_denoising_steps": int(own.get("denoising_steps", 1)),
    }
    for name, steps in (("one_step", 1), ("as_shipped", None)):
        rows = {rail: _figures(decode(steps, guards), careful) for rail, guards in rails.items()}
        plain = rows["off"]
        for row in rows.values():
            removed = plain["garbled_sentences"] - row["garbled_sentences"]
            row["garbled_removed"] = round(removed / plain["garbled_sentences"], 3) if removed else 0.0
            row["more_forward_passes"] = round(row["forward_passes"] / plain["forward_passes"] - 1, 3)
        result[name] = rows
    engine.close()
    return result


def _figures(reports: Sequence[Report], careful: Sequence[set[str]]) -> dict[str, Any]:
    sentences = [sentence for report in reports for sentence in report.sentences]
    garbled = sum(not GARBLED.isdisjoint(sentence.flags) for sentence in sentences)
    agreed = sum(
        sentence.text in known for report, known in zip(reports, careful, strict=True) for sentence in report.sentences
    )
    blocks = sum(report.stats.blocks for report in reports)
    passes = sum(report.stats.forward_passes for report in reports)
    return {
        "sentences": len(sentences),
        "garbled_sentences": garbled,
        "garbled_rate": round(garbled / max(1, len(sentences)), 4),
        "agrees": round(agreed / max(1, len(sentences)), 4),
        "forward_passes": passes,
        "tokens_per_forward": round(sum(report.stats.tokens for report in reports) / passes, 3),
        "gated_fraction": round(sum(report.stats.gated_blocks for report in reports) / blocks, 4),
        "redenoised_fraction": round(sum(report.stats.redenoised_blocks for report in reports) / blocks, 4),
    }


def table(result: dict[str, Any]) -> str:
    """The figures for a terminal."""
    lines = [
        f"{result['phantoms']} phantoms, gate {result['gate']}; as shipped: {result['own_denoising_steps']} steps",
        f"{'decoding':<30} {'garbled':>8} {'removed':>8} {'agrees':>7} {'passes':>7} {'more':>7} {'tok/pass':>9}",
    ]
    for name in ("one_step", "as_shipped"):
        for rail, row in result[name].items():
            lines.append(
                f"{name.replace('_', ' ') + ', ' + rail:<30} {row['garbled_rate']:>8.1%} "
                f"{row['garbled_removed']:>8.1%} {row['agrees']:>7.1%} {row['forward_passes']:>7} "
                f"{row['more_forward_passes']:>7.1%} {row['tokens_per_forward']:>9.2f}"
            )
    return "\n".join(lines)
