"""How much of what the guards shall find they do find, and how often they cry wolf."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from echo_model.bench import describe_machine
from echo_model.data.report_texts import TRAIN_SEED, phantom_texts
from echo_model.evaluation.guard_cases import KINDS, Case, flipped_side, inject
from echo_model.evaluation.phantoms import HELD_OUT_SEED
from echo_model.guards import Lexicon, contradictions, defects, load_lexicon, token_spans
from echo_model.model import load_model
from echo_model.prompt import parse_sections

_SEED: Final = 20_261
_SHOWN: Final = 5


def measure_guards(
    folder: Path, *, cases: int = 200, texts: int = 1_000, seed: int = HELD_OUT_SEED, train_seed: int = TRAIN_SEED
) -> dict[str, Any]:
    """Inject `cases` defects of each kind and count those found; count what is flagged in `texts` good reports.

    Half of the defects go into reports that the model was trained on (series `train_seed`), half into held-out ones
    (series `seed`), of which the good texts are taken as well. A defect counts as found when something is flagged at
    its place. `without_lexicon`: the same with nothing but the text to go by. Raises CheckpointError.
    """
    loaded = load_model(folder)
    lexicon = load_lexicon(folder)
    block = int(loaded.generation_config.get("block_length", 8))
    good = phantom_texts(seed, texts)
    series = {"trained": phantom_texts(train_seed, cases), "held_out": good[:cases]}
    tokens = {name: [_pieces(loaded.tokenizer, text) for text in some] for name, some in series.items()}
    detection = {}
    for kind in KINDS:
        parts = {
            name: inject(kind, some, cases // 2 + (cases % 2 if name == "trained" else 0), block, _SEED)
            for name, some in tokens.items()
        }
        detection[kind] = _detection(parts, lexicon)
    began = time.thread_time()
    found = [defects(text, lexicon) for text in good]
    spent = time.thread_time() - began
    alarms = [(text, some) for text, some in zip(good, found, strict=True) if some]
    total = sum(scores["cases"] for scores in detection.values())
    detected = sum(scores["found"] for scores in detection.values())
    return {
        "model": {"id": loaded.model_id, "revision": loaded.revision},
        "machine": describe_machine(torch.device("cpu")),
        "lexicon": None if lexicon is None else _describe(lexicon),
        "block_length": block,
        "series": {"trained": train_seed, "held_out": seed, "defects": _SEED},
        "cases": total,
        "detection": round(detected / total, 4),
        "kinds": detection,
        "good_texts": texts,
        "false_alarms": len(alarms),
        "false_alarm_rate": round(len(alarms) / texts, 4),
        "false_alarms_shown": [
            {"kind": one.kind, "text": text[one.start : one.end]} for text, (one, *_) in alarms[:_SHOWN]
        ],
        "contradiction": _contradiction(good, cases),
        "cpu_milliseconds_a_report": round(1000 * spent / texts, 3),
    }


def table(result: dict[str, Any]) -> str:
    """The figures for a terminal."""
    lines = [f"{'defect':<20} {'cases':>6} {'found':>7} {'no lexicon':>11}"]
    lines += [
        f"{kind:<20} {scores['cases']:>6} {scores['rate']:>7.1%} {scores['without_lexicon']:>11.1%}"
        for kind, scores in result["kinds"].items()
    ]
    sides = result["contradiction"]
    return "\n".join(
        [
            *lines,
            f"{'all':<20} {result['cases']:>6} {result['detection']:>7.1%}",
            f"good texts flagged: {result['false_alarms']} of {result['good_texts']}, {result['false_alarm_rate']:.1%}",
            f"sections that disagree: {sides['rate']:.1%} of {sides['cases']} found, "
            f"{sides['false_alarms']} good texts flagged",
            f"{result['cpu_milliseconds_a_report']:.2f} ms a report; {result['machine']}",
        ]
    )


def _pieces(tokenizer: Any, text: str) -> list[str]:
    """The text of every token."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return [text[start:end] for start, end in token_spans(tokenizer, ids)]


def _detection(parts: dict[str, list[Case]], lexicon: Lexicon | None) -> dict[str, Any]:
    """Rates of one kind, in all and by series, what flagged it, and some that were missed."""
    flags: Counter[str] = Counter()
    missed: list[str] = []
    by_series = {}
    for name, cases in parts.items():
        hits = 0
        for case in cases:
            kinds = _flags_there(case, lexicon)
            flags.update(kinds)
            hits += bool(kinds)
            if not kinds:
                missed.append(case.text[max(0, case.start - 30) : case.end + 30])
        by_series[name] = round(hits / len(cases), 4)
    every = [case for cases in parts.values() for case in cases]
    plain = sum(bool(_flags_there(case, None)) for case in every)
    return {
        "cases": len(every),
        "found": len(every) - len(missed),
        "rate": round(1 - len(missed) / len(every), 4),
        "by_series": by_series,
        "without_lexicon": round(plain / len(every), 4),
        "flags": dict(flags.most_common()),
        "missed_shown": missed[:_SHOWN],
    }


def _flags_there(case: Case, lexicon: Lexicon | None) -> set[str]:
    """Flags on the place of the defect or right beside it: the half of a word whose other half was overwritten."""
    return {one.kind for one in defects(case.text, lexicon) if one.start <= case.end and one.end >= case.start}


def _contradiction(good: Sequence[str], cases: int) -> dict[str, Any]:
    """Sides of the impression changed, and good texts."""
    rng = random.Random(_SEED)
    changed = [other for text in good if (other := flipped_side(rng, text)) is not None][:cases]
    found = sum(_disagree(text) for text in changed)
    return {
        "cases": len(changed),
        "found": found,
        "rate": round(found / max(1, len(changed)), 4),
        "false_alarms": sum(_disagree(text) for text in good),
        "good_texts": len(good),
    }


def _disagree(text: str) -> bool:
    sections = parse_sections(text)
    return bool(contradictions(sections.findings, sections.impression))


def _describe(lexicon: Lexicon) -> dict[str, Any]:
    return {
        "symbols": len(lexicon.symbols),
        "pairs": len(lexicon.pairs),
        "order_run": lexicon.order_run,
        "spelling": lexicon.spelling,
    }
