"""The REST API: its shapes as other programs rely on them, its pages of results, its errors."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipeline.clock import iso
from pipeline.events import DICOM_REFUSED, STUDY_COMPLETED, Event
from unit.console.study_events import START, StudyEvents
from unit.console.web_client import Console

PROBLEM = "application/problem+json"


def cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    running = Console(f"sqlite:///{tmp_path}/console.sqlite3", tmp_path)
    yield running
    running.close()


def test_a_delivered_study_has_the_shape_of_the_contract(console: Console) -> None:
    study = StudyEvents()
    console.feed(study.all_delivered(flags=["out_of_domain"], notices=["Do not rely on this."]))
    answer = console.http.get(f"/api/studies/{study.uid}").json()
    assert answer["study_instance_uid"] == study.uid
    assert (answer["state"], answer["version"], answer["reason"]) == ("delivered", 1, None)
    assert (answer["accession_number"], answer["patient_id"]) == ("EX-0001", "PHANTOM-1")
    assert [version["version"] for version in answer["versions"]] == [1]
    assert answer["timeline"][0]["hop"] == "dicom_listener"
    assert set(answer["timeline"][0]) >= {"at", "hop", "event", "detail", "duration_s"}
    assert answer["report"]["findings"] == "No pneumothorax."
    assert answer["report"]["impression"] == "No acute abnormality."
    assert answer["report"]["flags"] == ["out_of_domain"]
    assert answer["report"]["notices"] == ["Do not rely on this."]
    assert answer["report"]["model"] == {"id": "echo-phantom-demo", "version": "0a1b2c3d4e5f"}
    assert answer["report"]["sentences"][0]["confidence"] == 0.99
    assert answer["fhir"]["resource"] == "DiagnosticReport/123"
    assert answer["fhir"]["url"] == "http://ehr.example/fhir/DiagnosticReport/123"
    assert answer["fhir"]["version_id"] == "1"
    assert answer["images"][0]["url"] == f"/api/studies/{study.uid}/images/{study.sop_instance_uid}.png"


def test_a_study_without_a_report_says_why(console: Console) -> None:
    study = StudyEvents()
    console.feed([study.opened(), study.completed(), study.requested(), study.generated(), study.ehr_unavailable()])
    answer = console.http.get(f"/api/studies/{study.uid}").json()
    assert answer["state"] == "generated"
    assert answer["reason"]["code"] == "ehr_unavailable"
    assert answer["reason"]["next_attempt_at"].endswith("Z")
    assert answer["fhir"] is None


def test_an_event_twice_is_told_once(console: Console) -> None:
    study = StudyEvents()
    events = study.all_delivered()
    console.feed([*events, *events])
    assert len(console.http.get(f"/api/studies/{study.uid}").json()["timeline"]) == len(events)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [4, 3, 2, 1]),
        ("accession=EX-0002", [2]),
        ("accession=ex-0002", []),
        ("patient_id=SAME", [4, 3]),
        ("state=receiving", [4, 2]),
        ("state=delivered&patient_id=SAME", [3]),
        (f"since={iso(START + timedelta(minutes=3))}", [4, 3]),
        ("accession=", [4, 3, 2, 1]),
    ],
)
def test_search(console: Console, query: str, expected: list[int]) -> None:
    for number in (1, 2, 3, 4):
        study = StudyEvents(number, start=START + timedelta(minutes=number), patient_id="SAME" if number > 2 else None)
        console.feed(study.all_delivered() if number % 2 else [study.opened()])
    answer = console.http.get(f"/api/studies?{query}")
    assert answer.status_code == 200
    assert [item["accession_number"] for item in answer.json()["items"]] == [f"EX-{number:04d}" for number in expected]


def test_pages_follow_each_other_without_gap_or_repetition(console: Console) -> None:
    for number in range(7):  # three of them at the very same time
        console.feed([StudyEvents(number, start=START + timedelta(minutes=number // 3)).opened()])
    seen: list[str] = []
    cursor = ""
    while True:
        page = console.http.get("/api/studies", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [item["study_instance_uid"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 7


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/studies/2.25.404", 404),
        ("/api/studies/no-uid", 422),
        ("/api/studies?state=lost", 422),
        ("/api/studies?limit=0", 422),
        ("/api/studies?since=yesterday", 422),
        ("/api/studies?since=2026-01-01T00:00:00", 422),
        ("/api/studies?cursor=nonsense", 422),
        ("/api/studies?cursor=%FF", 422),
        (f"/api/studies?cursor={cursor('0001-01-01T00:00:00+14:00 x')}", 422),
        (f"/api/refusals?cursor={cursor('2026-01-01T00:00:00Z x' + chr(0))}", 422),
        ("/api/studies?since=0001-01-01T00:00:00%2B14:00", 422),
        ("/api/refusals?until=9999-12-31T23:59:59-14:00", 422),
        ("/api/studies?accession=%00", 422),
        ("/api/studies?patient_id=A%00", 422),
        ("/api/refusals?calling_ae_title=%00", 422),
        ("/api/refusals?reason=%00", 422),
        ("/api/studies/2.25.1/images/2.25.2.png", 404),
        ("/api/nothing", 404),
    ],
)
def test_errors_are_problem_documents(console: Console, path: str, status: int) -> None:
    answer = console.http.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == PROBLEM
    body = answer.json()
    assert body["status"] == status
    assert {"type", "title", "detail"} <= set(body)


def test_an_error_does_not_repeat_what_was_asked(console: Console) -> None:
    assert "SECRET" not in console.http.get("/api/studies?limit=SECRET").text


def test_a_wrong_method_is_a_problem_document(console: Console) -> None:
    answer = console.http.post("/api/studies")
    assert (answer.status_code, answer.headers["content-type"]) == (405, PROBLEM)


def test_without_its_database_the_api_says_so(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise sa.exc.OperationalError("SELECT patient X", {}, Exception("server closed the connection unexpectedly"))

    monkeypatch.setattr(console.queries, "studies", away)
    answer = console.http.get("/api/studies")
    assert (answer.status_code, answer.headers["content-type"]) == (503, PROBLEM)
    assert "patient X" not in answer.text


def test_a_fault_of_our_own_is_a_problem_document(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("patient X")

    monkeypatch.setattr(console.queries, "studies", broken)
    answer = console.http.get("/api/studies")
    assert (answer.status_code, answer.headers["content-type"]) == (500, PROBLEM)
    assert "patient X" not in answer.text


def test_dead_letters_are_listed_and_tell_of_their_study(console: Console) -> None:
    study = StudyEvents()
    console.feed([study.opened(), study.completed(), study.dead_letter(STUDY_COMPLETED, "dispatcher")])
    (letter,) = console.http.get("/api/dead-letters").json()["items"]
    assert letter["consumer"] == "dispatcher"
    assert letter["key"] == study.uid
    assert "value_base64" not in letter
    assert console.http.get(f"/api/studies/{study.uid}").json()["reason"]["code"] == "dead_letter"


def test_the_openapi_document_names_every_route(console: Console) -> None:
    document = console.http.get("/api/openapi.json").json()
    assert set(document["paths"]) == {
        "/api/studies",
        "/api/studies/{study_instance_uid}",
        "/api/studies/{study_instance_uid}/images/{sop_instance_uid}.png",
        "/api/dead-letters",
        "/api/refusals",
        "/api/events",
    }
    states = document["components"]["schemas"]["StudyItem"]["properties"]["state"]["enum"]
    assert states == [
        "receiving", "complete", "queued", "running", "generated", "delivered", "skipped", "failed", "parked",
    ]  # fmt: skip
    assert PROBLEM in json.dumps(document["paths"]["/api/studies"]["get"]["responses"]["422"])


def test_every_answer_is_guarded_by_headers(console: Console) -> None:
    for path in ("/", "/problems", "/api/studies", "/studies/2.25.404", "/static/console.js", "/healthz"):
        headers = console.http.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "same-origin"


def test_searches_use_an_index_and_sort_nothing(console: Console) -> None:
    base = "SELECT * FROM studies WHERE {} ORDER BY received_at DESC, study_instance_uid DESC LIMIT 51"
    for condition in ("1 = 1", "accession_number = 'x'", "patient_id = 'x'", "state = 'parked'",
                      "state = 'generated' AND reason_code IS NOT NULL"):  # fmt: skip
        with console.database.read() as connection:
            plan = str(connection.exec_driver_sql("EXPLAIN QUERY PLAN " + base.format(condition)).all())
        assert "USING INDEX" in plan, condition
        assert "TEMP B-TREE" not in plan, condition


def refused(number: int, calling: str = "PACS", code: str = "low_space") -> Event:
    at = START + timedelta(seconds=number)
    data = {
        "scope": "object",
        "reason": {"code": code, "text": "free space is below the watermark"},
        "status": "A700",
        "calling_ae_title": calling,
        "called_ae_title": "ECHO",
        "address": "192.0.2.7",
        "accession_number": None,
        "count": 3,
        "first_at": iso(START),
        "last_at": iso(at),
    }
    return Event(DICOM_REFUSED, "/dicom_listener", calling, f"refusal-{number}", at, data)


def test_refusals_are_found_by_sender_time_and_reason(console: Console) -> None:
    events = [refused(1), refused(2, calling="MOBILE1"), refused(3, code="truncated"), refused(4)]
    console.feed([*events, events[0]])

    def found(**search: str) -> list[str]:
        items = console.http.get("/api/refusals", params=search).json()["items"]
        return [item["event_id"] for item in items]

    ids = [event.id for event in events]
    assert found() == ids[::-1]
    assert found(calling_ae_title="MOBILE1") == [ids[1]]
    assert found(reason="truncated") == [ids[2]]
    assert found(since=iso(START + timedelta(seconds=2)), until=iso(START + timedelta(seconds=4))) == [ids[2], ids[1]]
    first = console.http.get("/api/refusals", params={"limit": 1}).json()
    assert (first["items"][0]["reason"]["code"], first["items"][0]["status"], first["items"][0]["count"]) == (
        "low_space",
        "A700",
        3,
    )
    assert found(cursor=first["next"]) == ids[2::-1]


def test_the_page_of_refusals_finds_them_by_sender_and_reason(console: Console) -> None:
    assert "No sender was refused" in console.http.get("/refusals").text
    console.feed([refused(1), refused(2, calling="MOBILE1"), refused(3, code="truncated")])
    page = console.http.get("/refusals").text
    assert page.count('data-label="Sender"') == 3
    assert "MOBILE1" in page
    only = console.http.get("/refusals?calling_ae_title=MOBILE1&reason=").text
    assert only.count('data-label="Sender"') == 1
    assert "No refusal matches" in console.http.get("/refusals?reason=nonsense").text


def test_the_page_of_refusals_finds_them_by_time(console: Console) -> None:
    console.feed([refused(60 * minute, calling=f"PACS{minute}") for minute in range(4)])
    page = console.http.get("/refusals?calling_ae_title=&reason=&since=2026-01-05T08:01&until=2026-01-05T08:03").text
    assert [f"PACS{minute}" in page for minute in range(4)] == [False, True, True, False]
    assert 'value="2026-01-05T08:01"' in page
    assert "PACS3" in console.http.get("/refusals?since=2026-01-05T09:03%2B01:00&until=").text
    for nonsense in ("yesterday", "0001-01-01T00:00%2B14:00", "%00"):
        answer = console.http.get(f"/refusals?since={nonsense}")
        assert (answer.status_code, answer.headers["content-type"][:9]) == (422, "text/html")


def test_further_pages_of_refusals_keep_to_the_time_that_was_searched(console: Console) -> None:
    console.feed([refused(number, calling=f"PACS{number}") for number in range(60)])
    first = console.http.get("/refusals?since=2026-01-05T08:00:05").text
    link = first.split('rel="next"')[0].rsplit('href="', 1)[1].split('"')[0].replace("&amp;", "&")
    second = console.http.get(link).text
    assert second.count('data-label="Sender"') == 5
    assert "PACS5" in second
    assert "PACS4 " not in second
