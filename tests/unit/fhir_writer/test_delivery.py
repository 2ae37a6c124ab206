"""How attempts end in the schedule and in events, with a destination that answers as told; and the HTTP side of it."""

from __future__ import annotations

import json
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.testclient import TestClient

import fhir_writer
from fhir_writer.adapters.http_api import delivery_routes
from fhir_writer.adapters.schedule import SqlDeliveries
from fhir_writer.adapters.tables import outbox, studies
from fhir_writer.domain.outcome import Delivered, DeliveryError, PatientNotFound, Refused, Unavailable
from fhir_writer.domain.schedule import CircuitBreaker, RetryPolicy
from fhir_writer.domain.study import Draft, StudyFacts
from fhir_writer.handlers.delivery import DeliverReport
from fhir_writer.handlers.intake import Intake
from pipeline.clock import ManualClock
from pipeline.database import Database
from pipeline.events import Event
from unit.fhir_writer.samples import NOW, completed, generated, new_uid, skipped

UP = Delivered("77", "1", "created")
DOWN = Unavailable("ehr_unavailable", "The FHIR server cannot be reached.")


class Told:
    """A destination with prepared answers."""

    def __init__(self) -> None:
        self.answers: deque[Delivered | Exception] = deque()
        self.asked: list[tuple[StudyFacts, Draft]] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def deliver(self, study: StudyFacts, draft: Draft, still_due: Callable[[], bool]) -> Delivered:
        self.asked.append((study, draft))
        self.meanwhile()
        answer = self.answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        return answer


class Bench:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = ManualClock(NOW)
        self.ehr = Told()
        self.deliveries = SqlDeliveries(database, outbox, 15.0)
        self.deliver = DeliverReport(
            self.deliveries,
            self.ehr,
            self.clock,
            policy=RetryPolicy(patient_grace_s=20, patient_recheck_s=300),
            breaker=CircuitBreaker(failures=3, open_s=30),
            fhir_server="https://ehr.test/fhir",
            chance=random.Random(1),
        )
        self.intake = Intake(self.deliveries, self.clock, threading.Event())
        self.uid = new_uid()
        self.feed(completed(self.uid), generated(self.uid))

    def feed(self, *events: Event) -> None:
        for event in events:
            with self.database.write() as connection:
                self.intake.handlers()[event.type](connection, event)

    def run(self, *answers: Delivered | DeliveryError | Exception) -> int:
        """One round with these answers; how many attempts it made."""
        self.ehr.answers.extend(answers)
        jobs = self.deliveries.claim(self.clock.now(), 10)
        for job in jobs:
            self.deliver.attempt(job)
        return len(jobs)

    def events(self) -> list[dict[str, Any]]:
        with self.database.read() as connection:
            rows = connection.execute(sa.select(outbox.table.c.payload).order_by(outbox.table.c.id)).scalars()
            return [json.loads(row)["data"] for row in rows]

    def row(self) -> dict[str, Any]:
        return self.deliveries.listed(None, 10)[0]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    database = Database(f"sqlite:///{tmp_path}/writer.sqlite3")
    database.migrate(Path(fhir_writer.__file__).parent / "migrations")
    yield Bench(database)
    database.close()


def test_delivered(bench: Bench) -> None:
    bench.run(UP)
    (event,) = bench.events()
    assert (event["fhir_server"], event["resource_id"], event["result"]) == ("https://ehr.test/fhir", "77", "created")
    row = bench.row()
    assert (row["state"], row["fhir_id"], row["delivered_version"]) == ("delivered", "77", 1)
    assert row["next_attempt_at"] is None
    assert bench.run() == 0


def test_an_outage_is_told_once_and_tried_with_growing_pauses(bench: Bench) -> None:
    pauses = []
    for _ in range(6):
        assert bench.run(DOWN) == 1
        due = bench.row()["next_attempt_at"].replace(tzinfo=NOW.tzinfo)
        pauses.append((due - bench.clock.now()).total_seconds())
        bench.clock.advance(40)  # past the breaker's pause, too
    assert [event["reason"]["code"] for event in bench.events()] == ["ehr_unavailable"]
    assert bench.events()[0]["person_must_act"] is False
    assert all(2**n / 2 <= pause <= 2**n for n, pause in enumerate(pauses))
    bench.run(UP)
    assert bench.events()[-1]["result"] == "created"


def test_a_report_that_keeps_changing_does_not_hold_up_the_others(bench: Bench) -> None:
    for _ in range(5):  # more than open the breaker
        bench.clock.advance(200)
        assert bench.run(Unavailable("ehr_conflict", "It kept changing.")) == 1
    other = new_uid()
    bench.feed(completed(other), generated(other))
    bench.run(UP)
    assert len(bench.ehr.asked) == 6


def test_a_refusal_parks_until_it_is_replayed(bench: Bench) -> None:
    bench.run(Refused("ehr_refused", "No.", http_status=422, operation_outcome="error/invalid: x"))
    bench.clock.advance(10**6)
    assert bench.run() == 0
    (event,) = bench.events()
    assert (event["person_must_act"], event["http_status"], event["next_attempt_at"]) == (True, 422, None)
    bench.deliveries.replay(bench.clock.now(), bench.uid)
    assert bench.run(UP) == 1


def test_an_unknown_patient_has_grace_then_parks_then_is_looked_at_again(bench: Bench) -> None:
    unknown = PatientNotFound("patient_not_found", "No Patient.")
    rounds = 0
    while bench.row()["state"] == "pending":
        rounds += bench.run(unknown)
        bench.clock.advance(2)
    assert rounds == 11  # at once and every two seconds up to the twentieth
    assert [event["reason"]["code"] for event in bench.events()] == ["patient_not_found"]
    bench.clock.advance(300)
    bench.run(unknown)
    assert len(bench.events()) == 1
    bench.deliveries.replay(bench.clock.now(), bench.uid)
    bench.run(unknown)
    assert len(bench.events()) == 2  # who asks gets an answer


def test_a_fault_of_our_own_parks_with_its_type_only(bench: Bench) -> None:
    bench.run(ValueError("quotes the patient's name"))
    (event,) = bench.events()
    assert event["reason"]["code"] == "internal_error"
    assert "ValueError" in event["reason"]["text"]
    assert "name" not in event["reason"]["text"]


def test_a_delivery_whose_lease_was_lost_writes_nothing(bench: Bench) -> None:
    (job,) = bench.deliveries.claim(bench.clock.now(), 1)
    bench.clock.advance(16)
    assert len(bench.deliveries.claim(bench.clock.now(), 1)) == 1
    bench.ehr.answers.append(UP)
    bench.deliver.attempt(job)
    assert bench.events() == []
    assert bench.row()["state"] == "pending"


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize(
    "before", [(), (DOWN,), (Refused("patient_ambiguous", "Two."),)], ids=["due", "away", "parked"]
)
def test_an_older_draft_is_withdrawn_when_a_newer_version_is_skipped_or_held(
    bench: Bench, before: tuple[DeliveryError, ...], held: bool
) -> None:
    if before:
        bench.run(*before)
    bench.feed(skipped(bench.uid, held=held), skipped(bench.uid, held=held))
    told = [event for event in bench.events() if event["reason"]["code"] == "withdrawn"]
    assert [(event["study_version"], event["person_must_act"]) for event in told] == [(1, False)]
    assert bench.deliveries.replay(bench.clock.now(), bench.uid) == 0
    bench.clock.advance(10**6)
    bench.feed(generated(bench.uid), completed(bench.uid))  # again, or later than the decision
    assert bench.run() == 0
    assert bench.row()["state"] == "withdrawn"
    bench.feed(completed(bench.uid, 2), generated(bench.uid, 2))  # a person has released it
    assert bench.run(UP) == 1
    assert (bench.row()["state"], bench.row()["delivered_version"]) == ("delivered", 2)


def test_a_draft_that_comes_after_a_newer_version_was_skipped_is_left_aside(bench: Bench) -> None:
    uid = new_uid()
    bench.feed(skipped(uid, 3), skipped(uid, 2), completed(uid), generated(uid), generated(uid, 2))
    assert [row["study_instance_uid"] for row in bench.deliveries.listed(None, 10)] == [bench.uid]
    bench.feed(generated(uid, 4))
    assert len(bench.deliveries.listed("pending", 10)) == 2


def test_a_skip_of_the_same_or_an_older_version_changes_nothing(bench: Bench) -> None:
    bench.feed(skipped(bench.uid, 1), generated(bench.uid, 2), completed(bench.uid, 2), skipped(bench.uid, 2))
    assert bench.run(UP) == 1
    assert bench.row()["delivered_version"] == 2


def test_what_is_delivered_is_not_withdrawn(bench: Bench) -> None:
    bench.run(UP)
    bench.feed(skipped(bench.uid))
    assert bench.row()["state"] == "delivered"
    bench.deliveries.replay(bench.clock.now(), bench.uid)
    bench.feed(skipped(bench.uid, 3))
    assert bench.row()["state"] == "delivered"
    assert len(bench.events()) == 1


def test_a_draft_withdrawn_while_it_was_being_sent_is_recorded_as_delivered(bench: Bench) -> None:
    bench.ehr.meanwhile = lambda: bench.feed(skipped(bench.uid))
    bench.run(UP)
    assert (bench.row()["state"], bench.row()["fhir_id"]) == ("delivered", "77")
    assert bench.events()[-1]["result"] == "created"


def test_what_ended_is_deleted_after_a_time_and_an_older_version_still_comes_too_late(bench: Bench) -> None:
    bench.feed(completed(bench.uid, 2), generated(bench.uid, 2))
    bench.run(UP)
    waiting = new_uid()
    bench.feed(completed(waiting), generated(waiting), completed(bench.uid, 3))
    bench.run(Refused("patient_ambiguous", "Two."))
    bench.clock.advance(100)
    before, now = bench.clock.now(), bench.clock.now()
    assert bench.deliveries.expire(NOW, 10, now) == 0
    assert bench.deliveries.expire(before, 10, now) == 1
    assert [row["study_instance_uid"] for row in bench.deliveries.listed(None, 10)] == [waiting]
    with bench.database.read() as connection:
        kept = connection.execute(sa.select(studies.c.study_instance_uid, studies.c.study_version)).all()
    assert sorted(map(tuple, kept)) == sorted([(waiting, 1), (bench.uid, 3)])
    bench.feed(generated(bench.uid, 1))
    assert bench.run() == 0
    bench.feed(generated(bench.uid, 3))
    assert bench.run(UP) == 1


@pytest.mark.parametrize("where", ["settle", "wake_outage"])
def test_a_delivery_whose_end_could_not_be_written_down_is_taken_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    for _ in range(3):  # the breaker opens, so that the next success wakes what waits
        bench.run(DOWN)
        bench.clock.advance(200)

    def away(*_: object) -> None:
        raise sa.exc.OperationalError("UPDATE deliveries", {}, Exception("the connection was cut"))

    with monkeypatch.context() as patch:
        patch.setattr(bench.deliveries, where, away)
        with pytest.raises(sa.exc.OperationalError):
            bench.run(UP)
    for _ in range(5):  # as the service's housekeeping does, within each lease
        bench.clock.advance(4)
        bench.deliveries.renew_leases(bench.clock.now())
    assert bench.run(UP) == 1
    assert bench.row()["state"] == "delivered"


def test_people_see_what_is_parked_and_replay_it(bench: Bench) -> None:
    bench.run(Refused("patient_ambiguous", "More than one Patient."))
    wakeup = threading.Event()
    http = TestClient(Starlette(routes=delivery_routes(bench.deliveries, bench.clock, wakeup)))
    (item,) = http.get("/v1/deliveries", params={"state": "parked"}).json()["items"]
    assert item["study_instance_uid"] == bench.uid
    assert item["reason"] == {"code": "patient_ambiguous", "text": "More than one Patient."}
    assert http.get("/v1/deliveries", params={"state": "pending"}).json() == {"items": []}
    for path in (f"/v1/deliveries/{bench.uid}/replay", "/v1/deliveries/replay?reason=out_of_domain"):
        for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "http://elsewhere.example"}):
            assert http.post(path, headers=headers).status_code == 403
    assert http.post(f"/v1/deliveries/{bench.uid}/replay").status_code == 202
    assert wakeup.is_set()
    assert bench.run(UP) == 1
    assert http.get("/v1/deliveries").json()["items"][0]["fhir"]["resource"] == "DiagnosticReport/77"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/deliveries?state=lost", 400),
        ("GET", "/v1/deliveries?limit=0", 400),
        ("POST", "/v1/deliveries/1.2.3/replay", 404),
        ("POST", "/v1/deliveries/replay", 400),
    ],
)
def test_wrong_requests_get_a_problem(bench: Bench, method: str, path: str, status: int) -> None:
    answer = TestClient(Starlette(routes=delivery_routes(bench.deliveries, bench.clock, threading.Event()))).request(
        method, path
    )
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
