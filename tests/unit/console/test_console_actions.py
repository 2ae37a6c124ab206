"""Buttons: what can be done about a study, who is asked, and what is said when it cannot be done. Refusals found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from console.adapters.actions import Actions
from console.domain.actions import actions_of
from console.domain.facts import fact_of
from pipeline.events import REPORT_GENERATED, REPORT_STARTED, STUDY_COMPLETED, Event
from servers.hasty import hasty_server
from unit.console.study_events import StudyEvents
from unit.console.web_client import Console

Answer = Callable[[httpx.Request], httpx.Response]


class Services:
    """Dispatcher and FHIR writer as they answer."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status = 202

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(f"{request.method} {request.url}")
        if self.status == 0:
            raise httpx.ConnectError("away", request=request)
        return httpx.Response(self.status, json={"title": "the study does not wait any more"})


@pytest.fixture
def services() -> Services:
    return Services()


@pytest.fixture
def console(tmp_path: Path, services: Services) -> Iterator[Console]:
    client = httpx.Client(transport=httpx.MockTransport(services.answer))
    actions = Actions({"dispatcher": "http://dispatcher:8080/", "fhir_writer": "http://writer:8080"}, client)
    running = Console(f"sqlite:///{tmp_path}/console.sqlite3", tmp_path, actions=actions)
    yield running
    running.close()
    actions.close()


CASES: dict[str, tuple[Callable[[StudyEvents], list[Event]], list[str]]] = {
    "held": (lambda s: [s.completed(), s.held()], ["release", "decline"]),
    "released": (lambda s: [s.completed(), s.held(), s.requested()], []),
    "skipped": (lambda s: [s.completed(), s.skipped()], []),
    "failed": (lambda s: [s.requested(), s.failed()], ["replay", "discard"]),
    "tried again": (lambda s: [s.requested(), s.failed(), s.requested(attempt=2)], []),
    "failing": (lambda s: [s.requested(), s.failed(retryable=True)], []),
    "parked by the writer": (lambda s: [s.generated(), s.parked()], ["deliver"]),
    "held, released, parked": (lambda s: [s.held(), s.requested(), s.generated(), s.parked()], ["deliver"]),
    "a dead letter": (lambda s: [s.completed(), s.dead_letter(STUDY_COMPLETED, "dispatcher")], ["retry"]),
    "a dead letter of an answer": (
        lambda s: [
            s.generated(),
            s.dead_letter(REPORT_GENERATED, "fhir_writer"),
            s.dead_letter(REPORT_GENERATED, "dispatcher"),
        ],
        [],
    ),
    "an old version failed": (lambda s: [s.requested(), s.failed(), s.opened(version=2)], []),
    "delivered": (lambda s: s.all_delivered(), []),
}


@pytest.mark.parametrize("case", list(CASES))
def test_what_can_be_done(case: str) -> None:
    events, expected = CASES[case]
    assert [action.name for action in actions_of([fact_of(event) for event in events(StudyEvents())])] == expected


def test_the_event_that_held_the_study_up_is_tried_again_and_no_other() -> None:
    study = StudyEvents()
    needed = study.dead_letter(STUDY_COMPLETED, "dispatcher")
    events = [study.completed(), needed, study.dead_letter(REPORT_STARTED, "dispatcher")]
    (action,) = actions_of([fact_of(event) for event in events])
    assert action.path == f"/v1/dead-letters/{needed.id}/replay"


def test_nothing_is_known_so_nothing_can_be_done() -> None:
    assert actions_of([]) == []


def test_a_button_asks_the_service_and_the_study_is_shown_again(console: Console, services: Services) -> None:
    study = StudyEvents()
    console.feed([study.completed(), study.held()])
    page = console.http.get(f"/studies/{study.uid}").text
    assert f'action="/studies/{study.uid}/release"' in page
    answer = console.http.post(f"/studies/{study.uid}/release", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/studies/{study.uid}")
    assert services.asked == [f"POST http://dispatcher:8080/v1/held/{study.uid}/release"]


def test_a_failed_study_is_tried_again_by_its_job(console: Console, services: Services) -> None:
    study = StudyEvents()
    failed = study.failed()
    console.feed([study.requested(), failed])
    console.http.post(f"/studies/{study.uid}/replay", follow_redirects=False)
    assert services.asked == [f"POST http://dispatcher:8080/v1/jobs/{failed.data['job_id']}/replay"]


@pytest.mark.parametrize(
    ("status", "told", "words"),
    [(409, 409, "the study does not wait any more"), (500, 503, "try again"), (0, 503, "does not answer")],
)
def test_what_cannot_be_done_is_said(console: Console, services: Services, status: int, told: int, words: str) -> None:
    study = StudyEvents()
    console.feed([study.completed(), study.held()])
    services.status = status
    answer = console.http.post(f"/studies/{study.uid}/decline")
    assert answer.status_code == told
    assert words in answer.text


def test_what_is_not_offered_is_not_done(console: Console, services: Services) -> None:
    study = StudyEvents()
    console.feed([study.completed(), study.held()])
    assert console.http.post(f"/studies/{study.uid}/discard").status_code == 409
    assert console.http.post("/studies/2.25.404/release").status_code == 409
    assert services.asked == []


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://testserver"},
        {"origin": "http://elsewhere.example"},  # over plain HTTP browsers send nothing else
        {"origin": "http://testserver:81"},
        {"origin": "null"},
    ],
)
def test_pages_of_other_sites_can_press_no_button(
    console: Console, services: Services, headers: dict[str, str]
) -> None:
    study = StudyEvents()
    console.feed([study.completed(), study.held()])
    answer = console.http.post(f"/studies/{study.uid}/release", headers=headers)
    assert (answer.status_code, services.asked) == (403, [])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "same-origin", "origin": "https://console.example"},
        {"origin": "http://TESTSERVER"},
        {"origin": "https://console.example", "x-forwarded-host": "console.example"},
        {"origin": "https://console.example", "x-forwarded-host": "console.example, inner:8000"},
    ],
)
def test_our_own_pages_and_programs_can(console: Console, services: Services, headers: dict[str, str]) -> None:
    study = StudyEvents()
    console.feed([study.completed(), study.held()])
    answer = console.http.post(f"/studies/{study.uid}/release", headers=headers, follow_redirects=False)
    assert (answer.status_code, len(services.asked)) == (303, 1)


def test_without_addresses_there_are_no_buttons(tmp_path: Path) -> None:
    console = Console(f"sqlite:///{tmp_path}/console.sqlite3", tmp_path)
    study = StudyEvents()
    console.feed([study.completed(), study.held()])
    assert "<button" not in console.http.get(f"/studies/{study.uid}").text
    assert console.http.post(f"/studies/{study.uid}/release").status_code == 409
    console.close()


def test_a_service_that_ends_an_idle_connection_is_asked_on_a_new_one() -> None:
    study = StudyEvents()
    facts = [fact_of(study.completed()), fact_of(study.held())]
    with hasty_server() as dispatcher:
        actions = Actions({"dispatcher": dispatcher})
        for _ in range(2):
            actions.do(facts, "release")  # raises unless it was done
        actions.close()
