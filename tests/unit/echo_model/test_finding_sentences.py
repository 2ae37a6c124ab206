"""The finding extractor on a table of sentences of our own writing: negation, doubt, sides, change, history, names."""

from __future__ import annotations

from collections import Counter
from typing import Final

import pytest

from echo_model.data.findings import FINDINGS, extract_findings
from unit.echo_model.report_tables import Labels, sentences

TABLE: Final = sentences()


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
