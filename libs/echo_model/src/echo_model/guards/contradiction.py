"""Findings against impression: the same finding there and not there, or on another side."""

from __future__ import annotations

from echo_model.data.findings import FindingMention, extract_findings


def contradictions(findings: str, impression: str) -> tuple[str, ...]:
    """Names of the findings about which the two sections (their texts) disagree.

    Present here and absent there is a disagreement, so is a stated side that differs (one side against both included).
    What is hedged, or said in one section alone, is none.
    """
    described, summed = extract_findings(findings), extract_findings(impression)
    return tuple(name for name, mention in summed.items() if name in described and _differ(described[name], mention))


def _differ(one: FindingMention, other: FindingMention) -> bool:
    if {one.state, other.state} == {"present", "absent"}:
        return True
    if "absent" in (one.state, other.state) or "none" in (one.side, other.side):
        return False
    return one.side != other.side
