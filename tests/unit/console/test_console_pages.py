"""The pages, as a browser without JavaScript gets them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from console.adapters.pages import duration
from pipeline.events import STUDY_COMPLETED
from unit.console.study_events import StudyEvents
from unit.console.web_client import Console


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    running = Console(f"sqlite:///{tmp_path}/console.sqlite3", tmp_path, dicom_hint="AE title ECHO, port 11112")
    yield running
    running.close()


def test_the_empty_list_says_where_to_send(console: Console) -> None:
    page = console.http.get("/").text
    assert "No study has arrived yet" in page
    assert "AE title ECHO, port 11112" in page


def test_a_search_without_result_says_so(console: Console) -> None:
    assert "No study matches" in console.http.get("/?accession=X").text


def test_the_list_shows_state_and_reason(console: Console) -> None:
    study = StudyEvents()
    console.feed([study.opened(), study.completed(), study.skipped()])
    page = console.http.get("/").text
    assert f"/studies/{study.uid}" in page
    assert "Skipped" in page
    assert "The study has no frontal chest radiograph." in page


def test_the_list_has_further_pages(console: Console) -> None:
    for number in range(51):
        console.feed([StudyEvents(number, patient_id="P & Q").opened()])
    first = console.http.get("/?patient_id=P+%26+Q").text
    link = first.split('rel="next"')[0].rsplit('href="', 1)[1].split('"')[0].replace("&amp;", "&")
    second = console.http.get(link).text
    assert second.count('class="key"') == 1
    assert "Newest" in second


def test_a_study_shows_the_draft_with_every_warning(console: Console) -> None:
    study = StudyEvents()
    console.feed(study.all_delivered(flags=["out_of_domain"], notices=["Outside what this model knows."]))
    page = console.http.get(f"/studies/{study.uid}").text
    assert "AI draft, not verified." in page
    assert "Not a medical device" in page
    assert "Outside what this model knows." in page
    assert "Outside the model&#39;s domain" in page
    assert "No pneumothorax." in page
    assert "99 %" in page
    assert 'href="http://ehr.example/fhir/DiagnosticReport/123"' in page
    assert f'src="/api/studies/{study.uid}/images/{study.sop_instance_uid}.png"' in page
    assert "after 1.0 s" in page


def test_an_older_draft_is_shown_as_such(console: Console) -> None:
    study = StudyEvents()
    console.feed([*study.all_delivered(), study.opened(version=2)])
    assert "This draft is of version 1; version 2 has none yet." in console.http.get(f"/studies/{study.uid}").text


def test_nothing_of_an_event_becomes_markup_or_a_script_link(console: Console) -> None:
    study = StudyEvents(accession="<script>x</script>", patient_id='"><img>')
    events = study.all_delivered(findings="<b>", notices=["<i>"])
    events[-1] = study.delivered(fhir_server="javascript:alert(1)//")
    console.feed(events)
    for path in ("/", f"/studies/{study.uid}"):
        page = console.http.get(path).text
        assert "<script>x" not in page
        assert "<img>" not in page
        assert "<i>" not in page
        assert 'href="javascript' not in page


def test_problems_lists_what_needs_a_person_and_what_waits(console: Console) -> None:
    assert "Nothing needs you" in console.http.get("/problems").text
    parked, failed, waiting = StudyEvents(1), StudyEvents(2), StudyEvents(3)
    console.feed([parked.generated(), parked.parked(), failed.requested(), failed.failed()])
    console.feed([waiting.generated(), waiting.ehr_unavailable(), failed.dead_letter(STUDY_COMPLETED, "console")])
    page = console.http.get("/problems").text
    for text in ("No Patient with this identifier", "The pixel data is truncated.", "The FHIR server does not answer.",
                 "Events that a service gave up"):  # fmt: skip
        assert text in page
    assert '<span class="count">3' in page


def test_an_unknown_study_is_a_page_for_people(console: Console) -> None:
    answer = console.http.get("/studies/2.25.404")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert "No study with this UID has been received." in answer.text


@pytest.mark.parametrize(
    "path",
    ["/?accession=%00", "/?patient_id=%00", "/refusals?reason=%00", "/refusals?calling_ae_title=%00", "/studies/%00"],
)
def test_what_no_database_can_compare_is_told_on_a_page(console: Console, path: str) -> None:
    answer = console.http.get(path)
    assert answer.status_code == 422
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, ""), (0.04, "0.0 s"), (9.96, "10.0 s"), (12.4, "12 s"), (60, "1 min"), (200, "3 min 20 s"),
     (7500, "2 h 5 min"), (90000, "1 d 1 h")],
)  # fmt: skip
def test_durations_in_plain_words(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words
