"""Which priors are worth having, and what `/v1/fetch` takes and tells."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from dicom_listener.adapters.fetch_routes import fetch_routes
from dicom_listener.adapters.fetches import SqlFetches
from dicom_listener.app import MIGRATIONS
from dicom_listener.domain.fetch import (
    ArchivedSeries,
    ArchivedStudy,
    FetchFailed,
    Problem,
    Share,
    may_show_chest,
    older_studies,
)
from dicom_listener.handlers.fetch import FetchLoop, Wish
from pipeline.clock import ManualClock
from pipeline.database import Database
from pipeline.errors import TransientError

CURRENT = ArchivedStudy("2.25.1", "A1", "P", "", "20260301", "101500")


def study(uid: str, date: str, time: str = "", **more: Any) -> ArchivedStudy:
    return ArchivedStudy(uid, date=date, time=time, **{"patient_id": "P", "modalities": ("DX",)} | more)


@pytest.mark.parametrize(
    ("other", "is_older"),
    [
        (study("2.25.2", "20260228"), True),
        (study("2.25.2", "20260228", modalities=()), True),
        (study("2.25.2", "20260228", modalities=("CR", "SR")), True),
        (study("2.25.2", "20260228", modalities=("CT",)), False),
        (study("2.25.2", "20260301", "090000"), True),
        (study("2.25.2", "20260301", "120000"), False),
        (study("2.25.2", "20260301"), False),
        (study("2.25.2", "20260302"), False),
        (study("2.25.2", ""), False),
        (study("2.25.2", "2026"), False),
        (study("2.25.1", "20260228"), False),
        (study("2.25.2", "20260228", patient_id="Q"), False),
        (study("2.25.2", "20260228", issuer_of_patient_id="OTHER"), True),
    ],
)
def test_older_studies(other: ArchivedStudy, is_older: bool) -> None:
    assert older_studies(CURRENT, [CURRENT, other], "20260401") == ([other] if is_older else [])


def test_the_newest_come_first_and_issuers_that_differ_are_other_patients() -> None:
    old, new = study("2.25.3", "20200101"), study("2.25.4", "20250101")
    assert older_studies(CURRENT, [old, new, new], "20260401") == [new, old]
    here = ArchivedStudy("2.25.1", patient_id="P", issuer_of_patient_id="HERE", date="20260301")
    assert older_studies(here, [study("2.25.2", "20250101", issuer_of_patient_id="THERE")], "20260401") == []


def test_a_study_without_a_date_is_compared_with_today() -> None:
    undated = ArchivedStudy("2.25.1", patient_id="P")
    old, future = study("2.25.3", "20200101"), study("2.25.4", "20270101")
    assert older_studies(undated, [old, future], "20260401") == [old]


@pytest.mark.parametrize(
    ("series", "description", "expected"),
    [
        ([("DX", "CHEST", "")], "", True),
        ([("CR", "", "Thorax pa")], "", True),
        ([("DX", "", "")], "XR CHEST", True),
        ([("DX", "", "")], "", True),
        ([("DX", "", "PA")], "Routine", True),
        ([("DX", "HAND", "")], "", False),
        ([("DX", "", "")], "Left knee", False),
        ([("DX", "", "Thoracic spine")], "", False),
        ([("DX", "TSPINE", "")], "", False),
        ([("CT", "CHEST", "")], "", False),
        ([("SR", "", ""), ("DX", "", "Lunge")], "", True),
        ([("DX", "HAND", ""), ("DX", "CHEST", "")], "", True),
        ([], "Chest", False),
    ],
)
def test_chest_radiographs(series: list[tuple[str, str, str]], description: str, expected: bool) -> None:
    listed = [ArchivedSeries(f"2.25.{n}", *each) for n, each in enumerate(series, 1)]
    assert may_show_chest(study("2.25.9", "20250101", description=description), listed) is expected


@pytest.fixture
def fetches(tmp_path: Path) -> Iterator[SqlFetches]:
    database = Database(f"sqlite:///{tmp_path}/l.sqlite3")
    database.migrate(MIGRATIONS)
    yield SqlFetches(database)
    database.close()


def client(fetches: SqlFetches, *, is_on: bool = True) -> TestClient:
    return TestClient(Starlette(routes=fetch_routes(fetches, ManualClock(), lambda: None, is_on=is_on)))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ('{"study_instance_uid": "1.2.3"}', 202),
        ('{"accession_number": " A 1 ", "priors": 20}', 202),
        ("", 400),
        ("[]", 400),
        ("{}", 400),
        ('{"study_instance_uid": "1.2.3", "accession_number": "A"}', 400),
        ('{"study_instance_uid": "1.02.3"}', 400),
        ('{"study_instance_uid": 5}', 400),
        ('{"accession_number": "A*"}', 400),
        ('{"accession_number": "A\\\\\\\\B"}', 400),
        ('{"accession_number": ""}', 400),
        ('{"accession_number": "A", "priors": 21}', 400),
        ('{"accession_number": "A", "priors": true}', 400),
        ('{"accession_number": "A", "prior": 1}', 400),
    ],
)
def test_what_can_be_asked(fetches: SqlFetches, body: str, status: int) -> None:
    answer = client(fetches).post("/v1/fetch", content=body)
    assert answer.status_code == status, answer.text
    if status == 400:
        assert answer.headers["content-type"] == "application/problem+json"


def test_the_life_of_a_request(fetches: SqlFetches) -> None:
    with client(fetches) as http:
        asked = http.post("/v1/fetch", json={"accession_number": "A1", "priors": 1})
        assert http.post("/v1/fetch", json={"accession_number": "A1", "priors": 1}).json() == asked.json()
        assert http.post("/v1/fetch", json={"accession_number": "A1"}).status_code == 202
        where = asked.headers["location"]
        now = ManualClock().now()
        claimed = fetches.claim(now)
        assert claimed is not None
        fetches.report(claimed.id, [Share("2.25.1", "study", 3, 2)], now)
        fetches.postpone(claimed.id, ("incomplete", "1 of 3"), now + timedelta(seconds=5), now)
        shown = http.get(where).json()
        assert (shown["state"], shown["attempts"], shown["reason"]) == (
            "queued",
            1,
            {"code": "incomplete", "text": "1 of 3"},
        )
        assert shown["studies"] == [{"study_instance_uid": "2.25.1", "role": "study", "expected": 3, "held": 2}]
        fetches.finish(claimed.id, "done", None, now)
        assert http.get("/v1/fetch", params={"state": "done"}).json()["items"][0]["id"] == claimed.id
        assert http.get("/v1/fetch", params={"state": "lost"}).status_code == 400
        assert http.get("/v1/fetch", params={"limit": "0"}).status_code == 400
        assert http.get("/v1/fetch/nothing").status_code == 404
        for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "http://elsewhere.example"}):
            assert http.post("/v1/fetch", json={"accession_number": "A1"}, headers=headers).status_code == 403


def test_without_an_archive_nothing_can_be_asked(fetches: SqlFetches) -> None:
    assert client(fetches, is_on=False).post("/v1/fetch", json={"accession_number": "A1"}).status_code == 501


class Sulking:
    """An archive that cannot be reached."""

    def studies(self, _wish: Wish) -> list[ArchivedStudy]:
        raise FetchFailed(Problem.UNREACHABLE)


class Forgetful(SqlFetches):
    """A database that is away when the end of an attempt is written, twice."""

    failures = 2

    def _set(self, id_: str, **values: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise TransientError("away")
        super()._set(id_, **values)


def test_the_end_of_an_attempt_is_written_when_the_database_is_back(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/l.sqlite3")
    database.migrate(MIGRATIONS)
    fetches, clock, stop = Forgetful(database), ManualClock(), threading.Event()
    fetch, _ = fetches.ask(Wish(None, "A", 0), clock.now())
    loop = FetchLoop(fetches, Sulking(), threading.Event(), clock, attempts=3)  # type: ignore[arg-type]  # never gets far
    pauses = []
    while loop.step(stop):
        after = fetches.get(fetch.id)
        assert after is not None
        if after.next_attempt_at is not None:
            pauses.append((after.next_attempt_at - after.updated_at).total_seconds())
            clock.advance(pauses[-1])
    assert (pauses, after.state, after.attempts) == ([5, 10], "failed", 3)
    database.close()


def test_what_died_with_an_earlier_process_is_due_again(fetches: SqlFetches) -> None:
    now = ManualClock().now()
    fetch, _ = fetches.ask(Wish("2.25.1", None, 0), now)
    assert fetches.claim(now) is not None
    assert fetches.claim(now) is None
    assert fetches.adopt(now) == 1
    again = fetches.claim(now)
    assert again is not None
    assert (again.id, again.attempts) == (fetch.id, 2)
    fetches.finish(fetch.id, "done", None, now)
    assert fetches.open_count() == 0
    fetches.forget(now + timedelta(days=1))
    assert fetches.get(fetch.id) is None
