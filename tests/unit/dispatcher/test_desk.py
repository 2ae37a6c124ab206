"""What people decide, over REST and over commands: held studies, failed jobs, dead letters, pausing, a site's pace."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from dispatcher.adapters import tables
from dispatcher.adapters.commands import run_command
from dispatcher.adapters.operations import operation_routes
from dispatcher.app import main
from dispatcher.desk import Desk
from dispatcher.domain.eligibility import Policy
from dispatcher.domain.jobs import superseded
from pipeline.database import Database
from pipeline.events import (
    DEAD_LETTER,
    REPORT_FAILED,
    REPORT_GENERATED,
    REPORT_REQUESTED,
    REPORT_STARTED,
    STUDY_COMPLETED,
    STUDY_SKIPPED,
    Event,
    dead_letter_topic,
)
from unit.dispatcher.studies import NOW, completed, instance, new_uid
from unit.dispatcher.test_dispatching import Dispatcher


class Operated(Dispatcher):
    """A dispatcher that asks where evidence is missing, with its operator's desk."""

    def __init__(self, database: Database, folder: Path) -> None:
        super().__init__(database, folder, Policy(missing_evidence="ask", stat_calling_ae_titles=frozenset({"ER"})))
        self.desk = Desk(self.units, self.handlers, self.clock)
        self.http = TestClient(Starlette(routes=operation_routes(self.desk)))

    def unclear(self, uid: str, version: int = 1) -> None:
        self.hear(completed(uid, instance(view_position=None), version=version, age="050Y"))

    def items(self, path: str) -> list[dict[str, Any]]:
        answer = self.http.get(path)
        assert answer.status_code == 200
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    def post(self, path: str) -> int:
        return self.http.post(path).status_code

    def command(self, *argv: str) -> tuple[int, list[dict[str, Any]]]:
        out = io.StringIO()
        status = run_command(argv, self.desk, out)
        return status, [json.loads(line) for line in out.getvalue().splitlines()]

    def failed_job(self) -> tuple[str, str]:
        uid = new_uid()
        job = self.study(uid)
        self.relay.relay_once()
        self.answer(REPORT_STARTED, self.job(job))
        self.answer(REPORT_FAILED, self.job(job), error_code="pixels_undecodable", retryable=False)
        return uid, job


@pytest.fixture
def dispatcher(tmp_path: Path) -> Iterator[Operated]:
    with closing(Database(f"sqlite:///{tmp_path}/dispatcher.sqlite3")) as database:
        yield Operated(database, tmp_path)


def test_a_study_in_doubt_waits_and_is_reported_when_released(dispatcher: Operated) -> None:
    uid = new_uid()
    dispatcher.unclear(uid)
    (told,) = dispatcher.published(STUDY_SKIPPED)
    assert told["data"]["person_must_act"] is True
    assert told["data"]["reason"]["code"] == "view_unknown"
    assert "chest_by_body_part_examined" in told["data"]["evidence"]
    assert dispatcher.outstanding()["outstanding"] == 0
    assert dispatcher.outstanding()["waiting_for_a_person"] == {"held": 1, "failed": 0, "dead_letters": 0}
    (held,) = dispatcher.items("/v1/held")
    assert (held["study_instance_uid"], held["codes"], held["images"]) == (uid, ["view_unknown"], 1)

    dispatcher.unclear(uid)  # told again: neither a second hold nor a second event
    assert len(dispatcher.published(STUDY_SKIPPED)) == 1

    assert dispatcher.post(f"/v1/held/{uid}/release") == 202
    assert dispatcher.items("/v1/held") == []
    dispatcher.relay.relay_once()
    (requested,) = dispatcher.published(REPORT_REQUESTED)
    assert requested["data"]["assumed"] == [], "a person has looked, so the worker need not"
    assert "released_by_person" in requested["data"]["evidence"]
    assert len(dispatcher.broker.tasks) == 1
    assert dispatcher.post(f"/v1/held/{uid}/release") == 409
    assert dispatcher.post(f"/v1/held/{uid}/decline") == 409
    dispatcher.unclear(uid)
    assert dispatcher.items("/v1/held") == []


def test_a_declined_study_is_skipped_for_good(dispatcher: Operated) -> None:
    uid = new_uid()
    dispatcher.unclear(uid)
    assert dispatcher.command("decline", uid) == (0, [])
    last = dispatcher.published(STUDY_SKIPPED)[-1]["data"]
    assert (last["reason"]["code"], last["person_must_act"]) == ("declined_by_person", False)
    assert dispatcher.command("held") == (0, [])
    assert dispatcher.published(REPORT_REQUESTED) == []


def test_a_newer_version_takes_the_place_of_a_hold(dispatcher: Operated) -> None:
    uid = new_uid()
    dispatcher.unclear(uid)
    job = dispatcher.study(uid, 2)
    assert dispatcher.items("/v1/held") == []
    assert dispatcher.job(job).state == "queued"
    dispatcher.unclear(uid)  # version 1 told again, late
    assert dispatcher.items("/v1/held") == []
    dispatcher.unclear(uid, 3)
    assert [held["study_version"] for held in dispatcher.items("/v1/held")] == [3]
    dispatcher.post(f"/v1/held/{uid}/release")
    assert dispatcher.job(job).state == "superseded"


def test_a_failed_job_is_replayed_with_all_its_attempts(dispatcher: Operated) -> None:
    uid, job = dispatcher.failed_job()
    (failed,) = dispatcher.items("/v1/jobs/failed")
    assert (failed["job_id"], failed["reason"]["code"]) == (job, "pixels_undecodable")
    assert failed["study_instance_uid"] == uid
    assert dispatcher.post(f"/v1/jobs/{job}/replay") == 202
    again = dispatcher.job(job)
    assert (again.state, again.attempt, again.starts, again.error_code) == ("queued", 2, 0, None)
    assert dispatcher.items("/v1/jobs/failed") == []
    dispatcher.relay.relay_once()
    assert [task[1] for task in dispatcher.broker.tasks] == [1, 2]
    assert dispatcher.post(f"/v1/jobs/{job}/replay") == 409
    assert dispatcher.post("/v1/jobs/nonsense/replay") == 404


def test_a_failed_job_is_not_replayed_beside_a_newer_version(dispatcher: Operated) -> None:
    uid, job = dispatcher.failed_job()
    dispatcher.study(uid, 2)
    assert dispatcher.post(f"/v1/jobs/{job}/replay") == 409
    assert dispatcher.job(job).state == "failed"


def test_a_newer_version_that_is_held_or_skipped_takes_an_older_one_back(dispatcher: Operated) -> None:
    uid = new_uid()
    job = dispatcher.study(uid)
    dispatcher.unclear(uid, 2)
    assert dispatcher.job(job).state == "superseded"
    assert [held["study_version"] for held in dispatcher.items("/v1/held")] == [2]
    dispatcher.study(uid, 3, age="004Y")
    assert dispatcher.items("/v1/held") == []
    assert dispatcher.post(f"/v1/held/{uid}/release") == 409
    dispatcher.unclear(uid, 2)  # told again, late
    assert dispatcher.items("/v1/held") == []


def test_a_failed_job_is_not_replayed_after_a_newer_version_was_skipped(dispatcher: Operated) -> None:
    uid, job = dispatcher.failed_job()
    dispatcher.study(uid, 2, age="004Y")
    assert dispatcher.post(f"/v1/jobs/{job}/replay") == 409


def test_a_failed_job_is_discarded_and_says_so(dispatcher: Operated) -> None:
    _, job = dispatcher.failed_job()
    assert dispatcher.command("failed")[1][0]["job_id"] == job
    assert dispatcher.command("discard", job) == (0, [])
    assert dispatcher.job(job).state == "discarded"
    assert dispatcher.items("/v1/jobs/failed") == []
    (told,) = dispatcher.published(STUDY_SKIPPED)
    assert told["data"]["reason"]["code"] == "discarded_by_person"
    assert dispatcher.command("discard", job)[0] == 1


def test_a_waiting_job_is_expedited(dispatcher: Operated) -> None:
    job = dispatcher.study(new_uid())
    dispatcher.relay.relay_once()
    assert dispatcher.post(f"/v1/jobs/{job}/expedite") == 202
    dispatcher.relay.relay_once()
    assert [(task[1], task[3]) for task in dispatcher.broker.tasks] == [(1, "routine"), (2, "stat")]
    assert not dispatcher.store.exists(f"manifests/{job}-1.json"), "the task in the slow queue does nothing"
    assert dispatcher.post(f"/v1/jobs/{job}/expedite") == 409


def buried(value: bytes, topic: str = STUDY_COMPLETED, consumer: str = "dispatcher", offset: int = 7) -> Event:
    data = {
        "topic": topic,
        "partition": 0,
        "offset": offset,
        "key": "1.2.3",
        "value_base64": base64.b64encode(value).decode(),
        "error_code": "handler_failed",
        "error_message": "RuntimeError",
        "attempts": 5,
        "consumer": consumer,
    }
    return Event(DEAD_LETTER, f"/{consumer}", "1.2.3", f"{topic}/0/{offset}", NOW, data)


def hear_letter(dispatcher: Operated, letter: Event) -> None:
    with dispatcher.database.write() as connection:
        dispatcher.by_type[dead_letter_topic(letter.data["topic"])](connection, letter)


def test_a_dead_letter_is_published_again_as_it_was(dispatcher: Operated) -> None:
    event = completed(new_uid())
    letter = buried(event.to_bytes())
    hear_letter(dispatcher, letter)
    hear_letter(dispatcher, buried(event.to_bytes(), consumer="console"))  # not ours
    (item,) = dispatcher.items("/v1/dead-letters")
    assert (item["letter_id"], item["topic"]) == (letter.id, STUDY_COMPLETED)
    assert dispatcher.post(f"/v1/dead-letters/{letter.id}/replay") == 202
    assert dispatcher.published(STUDY_COMPLETED) == [json.loads(event.to_bytes())]
    assert dispatcher.items("/v1/dead-letters") == []
    assert dispatcher.post(f"/v1/dead-letters/{letter.id}/replay") == 409


def test_an_unreadable_dead_letter_can_only_be_discarded(dispatcher: Operated) -> None:
    letter = buried(b"\xff no event")
    hear_letter(dispatcher, letter)
    assert dispatcher.command("replay-letter", letter.id)[0] == 1
    assert dispatcher.command("dead-letters")[1][0]["letter_id"] == letter.id
    assert dispatcher.command("discard-letter", letter.id)[0] == 0
    assert dispatcher.items("/v1/dead-letters") == []
    assert dispatcher.post("/v1/dead-letters/nonsense/discard") == 404


def test_a_pause_hands_over_nothing_and_withdraws_all_the_same(dispatcher: Operated) -> None:
    first = dispatcher.study(new_uid())
    dispatcher.relay.relay_once()
    assert dispatcher.http.post("/v1/pause", json={}).status_code == 400
    assert dispatcher.http.post("/v1/pause", json={"reason": "EHR update"}).status_code == 202
    waiting = dispatcher.study(new_uid())
    dispatcher.answer(REPORT_STARTED, dispatcher.job(first))  # what is at work goes on
    dispatcher.answer(REPORT_FAILED, dispatcher.job(first), retryable=False)
    dispatcher.relay.relay_once()
    assert [task[0] for task in dispatcher.broker.tasks] == [first]
    assert not dispatcher.store.exists(f"manifests/{first}-1.json")
    dispatcher.clock.advance(3600)
    dispatcher.broker.tasks.clear()
    dispatcher.sweep()
    assert dispatcher.job(waiting).attempt == 1, "what was never handed over is not lost"
    assert dispatcher.command("paused")[1][0]["reason"] == "EHR update"
    assert dispatcher.http.delete("/v1/pause").status_code == 202
    dispatcher.relay.relay_once()
    assert [task[0] for task in dispatcher.broker.tasks] == [waiting]
    assert dispatcher.http.get("/v1/pause").json() == {"paused": None}


def test_a_pause_holds_the_backlog_and_says_when_the_workers_are_drained(dispatcher: Operated) -> None:
    dispatcher.relay = dispatcher.new_relay(ahead=2)
    jobs = [dispatcher.study(new_uid()) for _ in range(5)]
    dispatcher.relay.relay_once()
    dispatcher.desk.pause("EHR update")
    drained = []
    for job in jobs[:2]:
        dispatcher.answer(REPORT_STARTED, dispatcher.job(job))
        drained.append(dispatcher.outstanding()["handed_over"])
        dispatcher.answer(REPORT_GENERATED, dispatcher.job(job))
        dispatcher.relay.relay_once()
    assert (drained, dispatcher.outstanding()["handed_over"]) == ([2, 1], 0)
    assert dispatcher.outstanding()["outstanding"] == 3
    dispatcher.desk.resume()
    dispatcher.relay.relay_once()
    assert [task[0] for task in dispatcher.broker.tasks] == jobs[:4]


def test_pages_of_other_sites_cannot_decide(dispatcher: Operated) -> None:
    uid = new_uid()
    dispatcher.unclear(uid)
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "http://elsewhere.example"}):
        refused = dispatcher.http.post(f"/v1/held/{uid}/release", headers=headers)
        assert refused.status_code == 403
        assert refused.headers["content-type"] == "application/problem+json"
    assert len(dispatcher.items("/v1/held")) == 1
    assert dispatcher.http.get("/v1/held?limit=0").status_code == 400


def test_what_is_decided_is_deleted_after_a_time_and_what_waits_is_not(dispatcher: Operated) -> None:
    done, waiting = dispatcher.study(new_uid()), dispatcher.study(new_uid())
    dispatcher.answer(REPORT_GENERATED, dispatcher.job(done))
    _, failed = dispatcher.failed_job()
    _, discarded = dispatcher.failed_job()
    dispatcher.desk.discard(discarded)
    declined, held = new_uid(), new_uid()
    for uid in (declined, held):
        dispatcher.unclear(uid)
    dispatcher.desk.decline(declined)
    letters = [buried(completed(new_uid()).to_bytes(), offset=offset) for offset in (1, 2)]
    for letter in letters:
        hear_letter(dispatcher, letter)
    dispatcher.desk.replay_letter(letters[0].id)

    def expire() -> int:
        return dispatcher.handlers.expire(dispatcher.units, timedelta(days=90), threading.Event())

    dispatcher.clock.advance(timedelta(days=89).total_seconds())
    assert expire() == 0
    dispatcher.clock.advance(timedelta(days=2).total_seconds())
    assert expire() == 4
    with dispatcher.units.read() as unit:
        left = {job for job in (done, waiting, failed, discarded) if unit.job(job) is not None}
        assert left == {waiting, failed}
        assert unit.letter(letters[0].id) is None
        assert unit.hold(declined) is None
    assert dispatcher.outstanding()["waiting_for_a_person"] == {"held": 1, "failed": 1, "dead_letters": 1}


def test_old_rows_are_deleted_in_small_steps_until_told_to_stop(dispatcher: Operated) -> None:
    with dispatcher.database.write() as connection:
        connection.execute(tables.letters.insert(), [letter_row(number) for number in range(450)])
    dispatcher.clock.advance(10)
    stop = threading.Event()
    stop.set()
    assert dispatcher.handlers.expire(dispatcher.units, timedelta(0), stop) == 0
    with dispatcher.units.write() as unit:
        assert unit.expire(dispatcher.clock.now(), 200) == 200
    assert dispatcher.handlers.expire(dispatcher.units, timedelta(0), threading.Event()) == 250


def letter_row(number: int) -> dict[str, Any]:
    return {
        "letter_id": str(number),
        "state": "discarded",
        "at": NOW,
        "topic": STUDY_COMPLETED,
        "key": "1.2.3",
        "value": b"",
        "error_code": "handler_failed",
        "attempts": 5,
    }


class Paced(Operated):
    """Ten seconds between two routine jobs of a site."""

    def __init__(self, database: Database, folder: Path) -> None:
        super().__init__(database, folder)
        self.relay = self.new_relay(pace=timedelta(seconds=10))

    def handed(self) -> list[tuple[str, int]]:
        """Jobs and attempts that are handed over now."""
        before = len(self.broker.tasks)
        while self.relay.relay_once():
            pass
        return [task[:2] for task in self.broker.tasks[before:]]

    def handed_every(self, seconds: float, times: int) -> list[list[tuple[str, int]]]:
        """The same, each time after so many seconds."""
        turns = []
        for _ in range(times):
            self.clock.advance(seconds)
            turns.append(self.handed())
        return turns


@pytest.fixture
def paced(tmp_path: Path) -> Iterator[Paced]:
    with closing(Database(f"sqlite:///{tmp_path}/dispatcher.sqlite3")) as database:
        yield Paced(database, tmp_path)


def test_a_site_s_routine_jobs_keep_its_pace_and_stat_ones_do_not(paced: Paced) -> None:
    slow = [paced.study(new_uid(), called="NORTH") for _ in range(3)]
    other = paced.study(new_uid(), called="SOUTH")
    urgent = paced.study(new_uid(), called="NORTH", callers=["ER"])
    assert paced.handed() == [(urgent, 1), (slow[0], 1), (other, 1)]
    assert paced.handed_every(5, 4) == [[], [(slow[1], 1)], [], [(slow[2], 1)]]
    paced.clock.advance(100)
    more = [paced.study(new_uid(), called="NORTH") for _ in range(2)]
    assert paced.handed() == [(more[0], 1)], "turns that nobody took are not saved up, nor owed"
    assert paced.handed_every(10, 1) == [[(more[1], 1)]]


def test_the_pace_holds_after_a_pause(paced: Paced) -> None:
    paced.desk.pause("EHR update")
    jobs = [paced.study(new_uid(), called="NORTH") for _ in range(3)]
    paced.clock.advance(3600)
    assert paced.handed() == []
    paced.desk.resume()
    assert paced.handed() == [(jobs[0], 1)]
    assert paced.handed_every(10, 2) == [[(jobs[1], 1)], [(jobs[2], 1)]]


def test_a_retry_neither_wastes_nor_moves_a_turn(paced: Paced) -> None:
    first, second, third = (paced.study(new_uid(), called="NORTH") for _ in range(3))
    assert paced.handed() == [(first, 1)]
    paced.answer(REPORT_STARTED, paced.job(first))
    paced.answer(REPORT_FAILED, paced.job(first))
    with paced.units.write() as unit:
        paced.handlers.apply(unit, superseded(paced.job(second), paced.clock.now()))
    assert paced.handed_every(4, 2) == [[], []], "due again, but it is not the site's turn"
    assert paced.handed_every(2, 1) == [[(first, 2)]], "before those that were never begun"
    assert paced.handed_every(10, 2) == [[(third, 1)], []], "what was taken back needs no turn"


def test_commands_work_on_the_database_of_a_service_that_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/dispatcher.sqlite3"
    for name, value in {
        "ECHO_DATABASE_URL": url,
        "ECHO_BUS_URL": f"sqlite:///{tmp_path}/bus.sqlite3",
        "ECHO_OBJECT_STORE_URL": f"file://{tmp_path}/objects",
        "ECHO_BROKER_URL": "redis://127.0.0.1:1/0",
    }.items():
        monkeypatch.setenv(name, value)
    assert main(["pause", "maintenance"]) == 0
    assert main(["paused"]) == 0
    assert json.loads(capsys.readouterr().out)["reason"] == "maintenance"
    uid = new_uid()
    with closing(Database(url)) as database:
        Operated(database, tmp_path).unclear(uid)
    assert main(["held"]) == 0
    assert json.loads(capsys.readouterr().out)["study_instance_uid"] == uid
    assert main(["release", uid]) == 0
    assert main(["release", uid]) == 1
    assert "it was released" in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong:
        main(["nonsense"])
    assert wrong.value.code == 2
