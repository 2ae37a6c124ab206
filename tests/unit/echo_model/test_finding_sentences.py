"""The finding extractor on a table of sentences of our own writing: negation, doubt, sides, change, history, names."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from echo_model.data.findings import FINDINGS, extract_findings

SHORT: Final = {
    "card": "cardiomegaly", "eff": "pleural_effusion", "ptx": "pneumothorax", "cons": "consolidation",
    "edema": "pulmonary_edema", "nod": "nodule", "atel": "atelectasis", "rib": "rib_fracture", "pace": "pacemaker",
    "ett": "endotracheal_tube", "line": "central_line",
}  # fmt: skip
STATES: Final = {"+": "present", "-": "absent", "?": "uncertain"}
Labels = dict[str, tuple[str, str]]


def _labels(codes: str) -> Labels:
    labels: Labels = {}
    for code in codes.split():
        if code == "none":
            continue
        match = re.fullmatch(r"(\w+)([+?-])(left|right|both|)", code)
        assert match, code
        labels[SHORT[match[1]]] = (STATES[match[2]], match[3] or "none")
    return labels


def _table() -> list[tuple[str, Labels]]:
    lines = Path(__file__).with_name("finding_sentences.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(text, _labels(codes)) for text, codes in rows]


TABLE: Final = _table()


@pytest.mark.parametrize(("text", "wanted"), TABLE, ids=[text[:60] for text, _ in TABLE])
def test_sentence_of_the_table(text: str, wanted: Labels) -> None:
    found = {name: (mention.state, mention.side) for name, mention in extract_findings(text).items()}
    assert {name: found.get(name) for name in wanted} == wanted
    assert {name for name, (state, _) in found.items() if state != "absent"} <= set(wanted)


def test_the_table_is_large_and_covers_every_finding() -> None:
    assert len(TABLE) >= 300
    assert not [text for text, count in Counter(text for text, _ in TABLE).items() if count > 1]
    for name in FINDINGS:
        states = {labels[name][0] for _, labels in TABLE if name in labels}
        assert {"present", "absent"} <= states, name
