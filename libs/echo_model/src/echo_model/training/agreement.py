"""Which answers of a teacher are worth teaching: those that find what the reference report finds."""

from __future__ import annotations

from echo_model.data.findings import extract_findings
from echo_model.data.labels import SIDED


def says_the_same(answer: str, reference: str) -> bool:
    """Whether both texts name the same findings as present, on the same sides; the wording is no matter."""
    return _present(answer) == _present(reference)


def _present(text: str) -> dict[str, str]:
    found = extract_findings(text)
    return {name: one.side if name in SIDED else "" for name, one in found.items() if one.state == "present"}
