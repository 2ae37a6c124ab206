"""The state that a set of facts amounts to. The same set gives the same answer in whatever order it came."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from console.domain.facts import Fact, moment
from pipeline.events import (
    DEAD_LETTER,
    REPORT_DELIVERED,
    REPORT_FAILED,
    REPORT_GENERATED,
    REPORT_REJECTED,
    REPORT_REQUESTED,
    REPORT_STARTED,
    STUDY_COMPLETED,
    STUDY_OPENED,
    STUDY_SKIPPED,
)

State = Literal["receiving", "complete", "queued", "running", "generated", "delivered", "skipped", "failed", "parked"]
STATES: tuple[State, ...] = get_args(State)
NEEDS_A_PERSON: tuple[State, ...] = ("parked", "failed")


@dataclass(frozen=True)
class Reason:
    """Why a study stands where it stands: a code for programs, a sentence for people."""

    code: str
    text: str
    next_attempt_at: datetime | None = None


@dataclass(frozen=True)
class VersionSummary:
    """One version of a study."""

    version: int
    state: State
    reason: Reason | None
    received_at: datetime
    updated_at: datetime
    image_count: int | None


@dataclass(frozen=True)
class StudySummary:
    """One line of the list: the newest version's state, and what a study is searched by."""

    study_instance_uid: str
    version: int
    state: State
    reason: Reason | None
    accession_number: str | None
    patient_id: str | None
    description: str | None
    flags: tuple[str, ...]
    received_at: datetime
    updated_at: datetime


def state_of(facts: Collection[Fact]) -> tuple[State, Reason | None]:
    """The state of one version of a study, and the reason where there is one. `facts` are that version's only."""
    if _newest(facts, REPORT_DELIVERED):
        return "delivered", None
    rejected = _newest(facts, REPORT_REJECTED)
    if rejected is not None:
        told = rejected.data["reason"]
        reason = Reason(told["code"], told["text"], moment(rejected.data["next_attempt_at"]))
        return ("parked" if rejected.data["person_must_act"] else "generated"), reason
    stuck = _buried(facts, "fhir_writer", {STUDY_COMPLETED, REPORT_GENERATED})
    if _newest(facts, REPORT_GENERATED):
        return ("failed", stuck) if stuck else ("generated", None)
    skipped, requested = _newest(facts, STUDY_SKIPPED), _newest(facts, REPORT_REQUESTED)
    if skipped is not None and (requested is None or requested.order < skipped.order):
        reason = Reason(skipped.data["reason"]["code"], skipped.data["reason"]["text"])
        return ("parked" if skipped.data.get("person_must_act") else "skipped"), reason
    attempted = _state_of_attempts(facts)
    if attempted is not None:
        return attempted
    if stuck := _buried(facts, "dispatcher", {STUDY_COMPLETED}):
        return "failed", stuck
    return ("complete" if _newest(facts, STUDY_COMPLETED) else "receiving"), None


def versions_of(facts: Collection[Fact]) -> dict[int, list[Fact]]:
    """The facts of each version, oldest version first.

    A dead letter whose event cannot be read belongs to the version that was under way when it was written.
    """
    versions: dict[int, list[Fact]] = {}
    for fact in facts:
        if fact.type != DEAD_LETTER and fact.version is not None:
            versions.setdefault(fact.version, []).append(fact)
    began = {version: min(fact.at for fact in own) for version, own in versions.items()}
    for letter in (fact for fact in facts if fact.type == DEAD_LETTER and versions):
        if letter.version is None:
            under_way = [version for version, at in began.items() if at <= letter.at]
            versions[max(under_way, default=min(versions))].append(letter)
        elif letter.version in versions:
            versions[letter.version].append(letter)
    return dict(sorted(versions.items()))


def summarize_versions(facts: Collection[Fact]) -> list[VersionSummary]:
    """One summary for each version, oldest first."""
    summaries = []
    for version, own in versions_of(facts).items():
        state, reason = state_of(own)
        completed = _newest(own, STUDY_COMPLETED)
        summaries.append(
            VersionSummary(
                version=version,
                state=state,
                reason=reason,
                received_at=_received_at(own),
                updated_at=max(fact.at for fact in own),
                image_count=completed.data["image_count"] if completed else None,
            )
        )
    return summaries


def summarize(facts: Collection[Fact]) -> StudySummary | None:
    """The study's line in the list; None while nothing but dead letters is known of it."""
    versions = summarize_versions(facts)
    if not versions:
        return None
    newest = versions[-1]
    generated = newest_report(facts)
    return StudySummary(
        study_instance_uid=next(iter(facts)).study_instance_uid,
        version=newest.version,
        state=newest.state,
        reason=newest.reason,
        accession_number=_identifier(facts, "accession_number"),
        patient_id=_identifier(facts, "patient_id"),
        description=_identifier(facts, "study_description"),
        flags=tuple(generated.data["flags"]) if generated else (),
        received_at=min(version.received_at for version in versions),
        updated_at=max(version.updated_at for version in versions),
    )


def newest_report(facts: Iterable[Fact]) -> Fact | None:
    """The generated draft of the newest version that has one."""
    return _newest_by_version(facts, REPORT_GENERATED)


def newest_delivery(facts: Iterable[Fact]) -> Fact | None:
    """The delivery of the newest version that was delivered."""
    return _newest_by_version(facts, REPORT_DELIVERED)


def newest_letter(facts: Iterable[Fact], consumer: str, topics: Collection[str]) -> Fact | None:
    """The dead letter that the service wrote last about an event of one of these topics."""
    letters = (
        fact
        for fact in facts
        if fact.type == DEAD_LETTER and fact.data["consumer"] == consumer and fact.data["topic"] in topics
    )
    return max(letters, key=lambda fact: fact.order, default=None)


def _newest(facts: Iterable[Fact], type_: str) -> Fact | None:
    return max((fact for fact in facts if fact.type == type_), key=lambda fact: fact.order, default=None)


def _newest_by_version(facts: Iterable[Fact], type_: str) -> Fact | None:
    own = (fact for fact in facts if fact.type == type_)
    return max(own, key=lambda fact: (fact.version or 0, fact.order), default=None)


def _state_of_attempts(facts: Collection[Fact]) -> tuple[State, Reason | None] | None:
    """What the newest attempt came to; None when no job was queued yet."""
    attempts = [fact for fact in facts if fact.type in (REPORT_REQUESTED, REPORT_STARTED, REPORT_FAILED)]
    if not attempts:
        return None
    newest = max(fact.data["attempt"] for fact in attempts)
    current = [fact for fact in attempts if fact.data["attempt"] == newest]
    failures = sorted((fact for fact in current if fact.type == REPORT_FAILED), key=lambda fact: fact.order)
    final = [fact for fact in failures if not fact.data["retryable"]]
    if final:
        return "failed", Reason(final[-1].data["error_code"], final[-1].data["error_text"])
    if failures:  # another attempt follows
        return "queued", Reason(failures[-1].data["error_code"], failures[-1].data["error_text"])
    return ("running" if _newest(current, REPORT_STARTED) else "queued"), None


def _buried(facts: Collection[Fact], consumer: str, topics: set[str]) -> Reason | None:
    """The reason when the service that had to go on with the study gave up the event that it needed."""
    newest = newest_letter(facts, consumer, topics)
    if newest is None:
        return None
    return Reason(
        "dead_letter",
        f"The {consumer.replace('_', ' ')} could not use an event of this study ({newest.data['error_code']}); "
        "it waits among the dead letters.",
    )


def _received_at(facts: Collection[Fact]) -> datetime:
    told = [moment(f.data["received_at"]) for f in facts if f.type == STUDY_OPENED]
    told += [moment(f.data["first_received_at"]) for f in facts if f.type == STUDY_COMPLETED]
    known = [at for at in told if at is not None]
    # Without either (the topics keep events for a limited time) the oldest fact is the best that is known.
    return min(known) if known else min(fact.at for fact in facts)


def _identifier(facts: Iterable[Fact], name: str) -> str | None:
    """The newest version's word; `completed` knows more than `opened`."""
    told = [fact for fact in facts if fact.data.get(name) and fact.type in (STUDY_OPENED, STUDY_COMPLETED)]
    if not told:
        return None
    best = max(told, key=lambda fact: (fact.version or 0, fact.type == STUDY_COMPLETED, fact.order))
    return str(best.data[name])
