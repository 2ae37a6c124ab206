"""The state of a study: from any set of facts, in any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.domain.facts import Fact, fact_of
from console.domain.state import Reason, state_of, summarize, summarize_versions
from console.domain.timeline import timeline_of
from pipeline.events import REPORT_GENERATED, REPORT_STARTED, STUDY_COMPLETED, Event
from unit.console.study_events import StudyEvents


def facts(events: Sequence[Event]) -> list[Fact]:
    return [fact_of(event) for event in events]


def state(*events: Event) -> tuple[str, str | None]:
    found, reason = state_of(facts(events))
    return found, reason.code if reason else None


def test_a_study_goes_through_all_states_in_order() -> None:
    events = StudyEvents().all_delivered()
    reached = [state_of(facts(events[: count + 1]))[0] for count in range(len(events))]
    assert reached == ["receiving", "complete", "queued", "running", "generated", "delivered"]


CASES: dict[str, tuple[Callable[[StudyEvents], list[Event]], tuple[str, str | None]]] = {
    "skipped": (lambda s: [s.opened(), s.completed(), s.skipped()], ("skipped", "no_frontal_view")),
    "skipped, then asked for after all": (lambda s: [s.completed(), s.skipped(), s.requested()], ("queued", None)),
    "a person must decide": (lambda s: [s.completed(), s.held()], ("parked", "view_unknown")),
    "a person released it": (lambda s: [s.completed(), s.held(), s.requested()], ("queued", None)),
    "a person declined it": (lambda s: [s.completed(), s.held(), s.skipped()], ("skipped", "no_frontal_view")),
    "asked for, then withdrawn": (
        lambda s: [s.completed(), s.requested(), s.skipped()],
        ("skipped", "no_frontal_view"),
    ),
    "failed for good": (
        lambda s: [s.completed(), s.requested(), s.started(), s.failed()],
        ("failed", "pixels_undecodable"),
    ),
    "failed, another attempt to come": (
        lambda s: [s.requested(), s.started(), s.failed(retryable=True)],
        ("queued", "pixels_undecodable"),
    ),
    "second attempt queued": (
        lambda s: [s.requested(), s.failed(retryable=True), s.requested(attempt=2)],
        ("queued", None),
    ),
    "second attempt runs": (
        lambda s: [s.requested(), s.failed(retryable=True), s.requested(attempt=2), s.started(attempt=2)],
        ("running", None),
    ),
    "given up after a retryable failure": (
        lambda s: [s.requested(), s.started(), s.failed(retryable=True), s.failed()],
        ("failed", "pixels_undecodable"),
    ),
    "a late failure of an attempt that was overtaken": (
        lambda s: [s.requested(), s.requested(attempt=2), s.started(attempt=2), s.failed(attempt=1)],
        ("running", None),
    ),
    "a draft in spite of a failed second attempt": (
        lambda s: [s.requested(), s.requested(attempt=2), s.generated(), s.failed(attempt=2)],
        ("generated", None),
    ),
    "parked": (lambda s: [s.generated(), s.parked()], ("parked", "patient_not_found")),
    "the EHR is away": (lambda s: [s.generated(), s.ehr_unavailable()], ("generated", "ehr_unavailable")),
    "parked after the EHR came back": (lambda s: [s.ehr_unavailable(), s.parked()], ("parked", "patient_not_found")),
    "replayed while the EHR is away": (lambda s: [s.parked(), s.ehr_unavailable()], ("generated", "ehr_unavailable")),
    "delivered after all": (lambda s: [s.parked(), s.ehr_unavailable(), s.delivered()], ("delivered", None)),
    "only the end is known": (lambda s: [s.delivered()], ("delivered", None)),
    "the dispatcher gave up the study": (
        lambda s: [s.opened(), s.completed(), s.dead_letter(STUDY_COMPLETED, "dispatcher")],
        ("failed", "dead_letter"),
    ),
    "the writer gave up the draft": (
        lambda s: [s.generated(), s.dead_letter(REPORT_GENERATED, "fhir_writer")],
        ("failed", "dead_letter"),
    ),
    "a dead letter that stops nothing": (
        lambda s: [s.requested(), s.started(), s.dead_letter(REPORT_STARTED, "dispatcher")],
        ("running", None),
    ),
    "the console's own dead letter": (
        lambda s: [s.opened(), s.completed(), s.dead_letter(STUDY_COMPLETED, "console")],
        ("complete", None),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_state_and_reason(name: str) -> None:
    make, expected = CASES[name]
    assert state(*make(StudyEvents())) == expected


def test_the_next_attempt_is_part_of_the_reason() -> None:
    study = StudyEvents()
    found, reason = state_of(facts([study.generated(), study.ehr_unavailable()]))
    assert found == "generated"
    assert isinstance(reason, Reason)
    assert reason.next_attempt_at is not None
    assert reason.next_attempt_at > study.at


def test_a_late_image_makes_the_newest_version_count() -> None:
    study = StudyEvents()
    events = [*study.all_delivered(), study.opened(version=2)]
    summary = summarize(facts(events))
    assert summary is not None
    assert (summary.version, summary.state) == (2, "receiving")
    assert [version.state for version in summarize_versions(facts(events))] == ["delivered", "receiving"]


def test_dead_letters_alone_are_no_study() -> None:
    assert summarize(facts([StudyEvents().dead_letter(STUDY_COMPLETED, "dispatcher")])) is None


def test_an_unreadable_dead_letter_belongs_to_the_version_under_way() -> None:
    study = StudyEvents()
    events = [study.completed(), study.dead_letter(STUDY_COMPLETED, "dispatcher"), study.opened(version=2)]
    assert [version.state for version in summarize_versions(facts(events))] == ["failed", "receiving"]


def test_a_readable_dead_letter_belongs_to_the_version_it_names() -> None:
    study = StudyEvents()
    first = study.completed()
    events = [first, study.opened(version=2), study.dead_letter(STUDY_COMPLETED, "dispatcher", first.to_bytes())]
    assert [version.state for version in summarize_versions(facts(events))] == ["failed", "receiving"]


def _eventful() -> list[Event]:
    study = StudyEvents()
    return [
        *study.all_delivered(),
        study.opened(2), study.completed(2), study.requested(2), study.started(2), study.failed(2, retryable=True),
        study.requested(2, attempt=2), study.started(2, attempt=2), study.generated(2), study.ehr_unavailable(2),
        study.dead_letter(REPORT_GENERATED, "fhir_writer"), study.parked(2),
    ]  # fmt: skip


_EVENTFUL = facts(_eventful())


@given(st.permutations(_EVENTFUL), st.integers(1, len(_EVENTFUL)))
def test_no_order_of_arrival_changes_anything(shuffled: list[Fact], count: int) -> None:
    seen = sorted(shuffled[:count], key=lambda fact: fact.at)
    assert summarize(shuffled[:count]) == summarize(seen)
    assert summarize_versions(shuffled[:count]) == summarize_versions(seen)
    assert timeline_of(shuffled[:count]) == timeline_of(seen)


@given(st.permutations(_EVENTFUL))
def test_the_timeline_tells_how_long_each_step_took(shuffled: list[Fact]) -> None:
    steps = timeline_of(shuffled)
    assert [step.at for step in steps] == sorted(step.at for step in steps)
    assert [step.duration_s for step in steps if step.version == 1] == [None, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert [step.hop for step in steps][:6] == [
        "dicom_listener", "dicom_listener", "dispatcher", "inference_worker", "inference_worker", "fhir_writer",
    ]  # fmt: skip


def test_facts_keep_no_more_than_is_shown() -> None:
    fact = fact_of(StudyEvents().completed())
    assert "PHANTOM^1" not in str(fact)
    assert "object_ref" not in str(fact)


def test_the_timeline_says_what_the_headers_said_and_what_was_assumed() -> None:
    study = StudyEvents()
    held, queued = timeline_of(facts([study.held(), study.requested()]))
    assert held.title == "Parked: a person decides"
    assert held.detail.endswith("Headers say: chest by study description.")
    assert "Taken for granted: view unknown." in queued.detail
