"""A study that waits for a person's word, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from dispatcher.domain import jobs
from dispatcher.domain.eligibility import Ask, Priority
from dispatcher.domain.jobs import Change, Limits

HoldState = Literal["waiting", "released", "declined", "superseded"]


@dataclass(frozen=True)
class Hold:
    """One version of a study in doubt, and the job that it becomes when a person says so."""

    study_instance_uid: str
    study_version: int
    state: HoldState
    codes: Sequence[str]
    text: str
    priority: Priority
    site: str
    images: Sequence[Mapping[str, Any]]
    evidence: Sequence[str]
    held_at: datetime
    decided_at: datetime | None = None


def held(study_instance_uid: str, study_version: int, ask: Ask, site: str, now: datetime) -> Hold:
    """A new hold."""
    return Hold(
        study_instance_uid=study_instance_uid,
        study_version=study_version,
        state="waiting",
        codes=list(ask.codes),
        text=ask.text,
        priority=ask.select.priority,
        site=site,
        images=[image.reference() for image in ask.select.images],
        evidence=list(ask.select.evidence),
        held_at=now,
    )


def decided(hold: Hold, state: HoldState, now: datetime) -> Hold | None:
    """The hold after its decision; None when it was made before."""
    return replace(hold, state=state, decided_at=now) if hold.state == "waiting" else None


def job_of(hold: Hold, model_version: str, now: datetime, limits: Limits) -> Change:
    """The job of a released hold. Nothing is assumed any more: a person has looked."""
    return jobs.created(
        hold.study_instance_uid,
        hold.study_version,
        model_version,
        hold.priority,
        hold.images,
        now,
        limits,
        site=hold.site,
        evidence=[*hold.evidence, "released_by_person"],
    )
