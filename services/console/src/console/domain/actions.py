"""What a person can do about a study that waits for one, and which service does it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from console.domain.facts import Fact
from console.domain.state import newest_letter, state_of, versions_of
from pipeline.events import REPORT_FAILED, REPORT_GENERATED, REPORT_REJECTED, STUDY_COMPLETED, STUDY_SKIPPED

Doer = Literal["dispatcher", "fhir_writer"]


@dataclass(frozen=True)
class Action:
    """One button. `path`: what is posted to at the service `by`."""

    name: str
    label: str
    by: Doer
    path: str


def actions_of(facts: Collection[Fact]) -> list[Action]:
    """What can be done about the study's newest version now, the usual thing first."""
    versions = versions_of(facts)
    if not versions:
        return []
    own = versions[max(versions)]
    uid = own[0].study_instance_uid
    state, reason = state_of(own)
    if state == "parked" and any(fact.type == REPORT_REJECTED for fact in own):
        return [Action("deliver", "Deliver again", "fhir_writer", f"/v1/deliveries/{uid}/replay")]
    if state == "parked" and any(fact.type == STUDY_SKIPPED for fact in own):
        return [
            Action("release", "Report it", "dispatcher", f"/v1/held/{uid}/release"),
            Action("decline", "No report", "dispatcher", f"/v1/held/{uid}/decline"),
        ]
    if state != "failed":
        return []
    if reason is not None and reason.code == "dead_letter":
        letter = newest_letter(own, "dispatcher", {STUDY_COMPLETED})
        if letter is None or any(fact.type == REPORT_GENERATED for fact in own):  # the FHIR writer's, then
            return []
        return [Action("retry", "Try again", "dispatcher", f"/v1/dead-letters/{letter.event_id}/replay")]
    final = [fact for fact in own if fact.type == REPORT_FAILED and not fact.data["retryable"]]
    if not final:
        return []
    job = f"/v1/jobs/{max(final, key=lambda fact: fact.order).data['job_id']}"
    return [
        Action("replay", "Try again", "dispatcher", f"{job}/replay"),
        Action("discard", "Give up", "dispatcher", f"{job}/discard"),
    ]
