"""The tables of sentences and of raw reports with what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

SHORT: Final = {
    "card": "cardiomegaly", "eff": "pleural_effusion", "ptx": "pneumothorax", "cons": "consolidation",
    "edema": "pulmonary_edema", "nod": "nodule", "atel": "atelectasis", "rib": "rib_fracture", "pace": "pacemaker",
    "ett": "endotracheal_tube", "line": "central_line",
}  # fmt: skip
STATES: Final = {"+": "present", "-": "absent", "?": "uncertain"}
Labels = dict[str, tuple[str, str]]


def sentences() -> list[tuple[str, Labels]]:
    """Sentences and their labels, denials included."""
    return _table("finding_sentences.tsv")


def raw_reports() -> list[tuple[str, Labels]]:
    """Raw reports and what is there or suspected in them."""
    return [(text.replace("\\n", "\n"), labels) for text, labels in _table("raw_reports.tsv")]


def _table(name: str) -> list[tuple[str, Labels]]:
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").split("\n")
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(text, _labels(codes)) for text, codes in rows]


def _labels(codes: str) -> Labels:
    labels: Labels = {}
    for code in codes.split():
        if code == "none":
            continue
        match = re.fullmatch(r"(\w+)([+?-])(left|right|both|)", code)
        assert match, code
        labels[SHORT[match[1]]] = (STATES[match[2]], match[3] or "none")
    return labels
