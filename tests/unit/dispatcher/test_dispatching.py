"""Use cases on a real database (SQLite; PostgreSQL in the integration tests), with a broker that the test controls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import pytest
import sqlalchemy as sa

from dispatcher.adapters import tables
from dispatcher.adapters.relay import TaskRelay
from dispatcher.adapters.store import SqlUnits
from dispatcher.app import MIGRATIONS, event_handlers
from dispatcher.domain.eligibility import Policy
from dispatcher.domain.jobs import Job, Limits, job_id
from dispatcher.handlers import Handlers, outstanding
from dispatcher.ports import QueueUnavailable
from pipeline.clock import ManualClock
from pipeline.database import Database
from pipeline.errors import ObjectNotFound
from pipeline.events import (
    REPORT_FAILED,
    REPORT_GENERATED,
    REPORT_REQUESTED,
    REPORT_STARTED,
    STUDY_SKIPPED,
    Event,
    study_event,
)
from pipeline.store import LocalObjectStore
from unit.dispatcher.studies import NOW, completed, instance, new_uid


class Broker:
    """What the dispatcher sees of Redis; `away` makes it unreachable."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int, str, str]] = []
        self.away = False

    def enqueue(self, job_id: str, attempt: int, manifest_ref: str, priority: str) -> None:
        self.ping()
        self.tasks.append((job_id, attempt, manifest_ref, priority))

    def held(self) -> int:
        self.ping()
        return len(self.tasks)

    def ping(self) -> None:
        if self.away:
            raise QueueUnavailable("away")


class Dispatcher:
    def __init__(
        self, database: Database, folder: Path, policy: Policy | None = None, limits: Limits | None = None
    ) -> None:
        self.clock = ManualClock(NOW)
        self.broker = Broker()
        self.database = database
        self.database.migrate(MIGRATIONS)
        self.store = LocalObjectStore(folder / "objects")
        self.units = SqlUnits(self.database, self.clock)
        self.limits = limits or Limits()
        policy = policy or Policy(stat_calling_ae_titles=frozenset({"ER"}))
        self.handlers = Handlers(policy, self.limits, "default", self.clock)
        self.relay = self.new_relay()
        self.by_type = event_handlers(self.handlers, self.clock)

    def new_relay(self, ahead: int = 200, pace: timedelta = timedelta(0)) -> TaskRelay:
        return TaskRelay(self.database, self.store, self.broker, self.clock, ahead=ahead, site_interval=pace)

    def hear(self, event: Event) -> None:
        with self.database.write() as connection:
            self.by_type[event.type](connection, event)

    def study(self, uid: str, version: int = 1, **changes: Any) -> str:
        self.hear(completed(uid, version=version, **changes))
        return job_id(uid, version, "default")

    def answer(self, type_: str, job: Job, **data: Any) -> None:
        """An event of the worker about the job's present attempt."""
        known = {"job_id": job.job_id, "attempt": job.attempt}
        uid, version = job.study_instance_uid, job.study_version
        if type_ == REPORT_GENERATED:
            path = Path(__file__).parents[3] / "schemas" / "examples" / f"{type_}.json"
            data = json.loads(path.read_text())["data"] | data
            data |= {"study_instance_uid": uid, "study_version": version}
        elif type_ == REPORT_STARTED:
            data = {"worker": "w"} | data
        else:
            data = {"error_code": "internal_error", "error_text": "t", "retryable": True} | data
        self.hear(study_event(type_, "/inference_worker", uid, version, self.clock.now(), data | known))

    def job(self, job_id: str) -> Job:
        with self.units.read() as unit:
            job = unit.job(job_id)
        assert job is not None
        return job

    def published(self, type_: str) -> list[dict[str, Any]]:
        with self.database.read() as connection:
            query = sa.select(tables.outbox.table).where(tables.outbox.table.c.topic == type_)
            rows = connection.execute(query.order_by(tables.outbox.table.c.id)).all()
        return [json.loads(row.payload) for row in rows]

    def sweep(self, caught_up: bool = True) -> int:
        return self.handlers.sweep(self.units, self.broker, lambda: caught_up)

    def outstanding(self) -> dict[str, Any]:
        with self.units.read() as unit:
            return outstanding(unit.load(), unit.awaited(), unit.waiting(), self.clock.now())


@pytest.fixture
def dispatcher(tmp_path: Path) -> Iterator[Dispatcher]:
    with closing(Database(f"sqlite:///{tmp_path}/dispatcher.sqlite3")) as database:
        yield Dispatcher(database, tmp_path)


def test_the_migration_makes_the_tables_of_the_code(dispatcher: Dispatcher) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with dispatcher.database.read() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), tables.metadata)
    assert differences == []


def test_a_study_is_queued_with_its_manifest_put_first(dispatcher: Dispatcher) -> None:
    uid = new_uid()
    job = dispatcher.study(uid)
    assert dispatcher.broker.tasks == []
    assert dispatcher.relay.relay_once() == 1
    ((queued, attempt, ref, priority),) = dispatcher.broker.tasks
    assert (queued, attempt, priority) == (job, 1, "routine")
    assert uid not in ref
    with dispatcher.store.open(ref) as manifest:
        content = manifest.read()
    assert json.loads(content) == dispatcher.published(REPORT_REQUESTED)[0]
    assert Event.from_bytes(content).data["job_id"] == job
    assert dispatcher.relay.relay_once() == 0


def test_a_skipped_study_is_told_with_its_reason_and_makes_no_job(dispatcher: Dispatcher) -> None:
    dispatcher.hear(completed(new_uid(), instance(modality="CT")))
    (event,) = dispatcher.published(STUDY_SKIPPED)
    assert event["data"]["reason"]["code"] == "modality_not_reportable"
    assert dispatcher.relay.relay_once() == 0
    assert dispatcher.outstanding()["outstanding"] == 0


def test_a_broker_or_object_store_that_is_away_delays_only(dispatcher: Dispatcher, tmp_path: Path) -> None:
    dispatcher.study(new_uid())
    dispatcher.broker.away = True
    for _ in range(3):
        with pytest.raises(QueueUnavailable):
            dispatcher.relay.relay_once()
    dispatcher.broker.away = False
    assert dispatcher.relay.relay_once() == 1
    assert len(dispatcher.broker.tasks) == 1


def test_the_same_study_told_twice_is_one_job(dispatcher: Dispatcher) -> None:
    uid = new_uid()
    assert dispatcher.study(uid) == dispatcher.study(uid)
    dispatcher.relay.relay_once()
    assert len(dispatcher.broker.tasks) == 1


def test_a_newer_version_takes_the_place_of_an_unfinished_older_one(dispatcher: Dispatcher) -> None:
    uid = new_uid()
    old = dispatcher.study(uid)
    dispatcher.relay.relay_once()
    new = dispatcher.study(uid, 2)
    dispatcher.relay.relay_once()
    assert dispatcher.job(old).state == "superseded"
    assert [task[0] for task in dispatcher.broker.tasks] == [old, new]
    with pytest.raises(ObjectNotFound):
        dispatcher.store.open(dispatcher.job(old).manifest_ref)
    assert dispatcher.store.exists(dispatcher.job(new).manifest_ref)
    dispatcher.answer(REPORT_GENERATED, dispatcher.job(old))
    assert dispatcher.job(old).state == "superseded"
    dispatcher.study(uid, 1)  # told again, late
    assert dispatcher.job(new).state == "queued"


def test_a_finished_version_stays_done_when_a_newer_one_comes(dispatcher: Dispatcher) -> None:
    uid = new_uid()
    old = dispatcher.study(uid)
    dispatcher.answer(REPORT_GENERATED, dispatcher.job(old))
    dispatcher.study(uid, 2)
    assert dispatcher.job(old).state == "done"


@pytest.mark.parametrize("begun", [False, True])
def test_a_newer_version_that_is_skipped_takes_an_older_one_back(dispatcher: Dispatcher, begun: bool) -> None:
    uid = new_uid()
    old = dispatcher.study(uid)
    dispatcher.relay.relay_once()
    if begun:
        dispatcher.answer(REPORT_STARTED, dispatcher.job(old))
    dispatcher.study(uid, 2, born="2020-01-01")
    assert dispatcher.published(STUDY_SKIPPED)[-1]["data"]["reason"]["code"] == "paediatric"
    assert dispatcher.job(old).state == "superseded"
    dispatcher.relay.relay_once()
    assert not dispatcher.store.exists(dispatcher.job(old).manifest_ref)
    dispatcher.study(uid, 1)  # told again, late: as an event or as a dead letter
    dispatcher.relay.relay_once()
    assert len(dispatcher.broker.tasks) == 1
    assert dispatcher.outstanding()["outstanding"] == 0


def test_a_version_that_only_came_late_is_not_queued_after_a_newer_one_was_skipped(dispatcher: Dispatcher) -> None:
    uid = new_uid()
    dispatcher.study(uid, 2, born="2020-01-01")
    dispatcher.study(uid, 1)
    assert dispatcher.published(REPORT_REQUESTED) == []
    dispatcher.study(uid, 3)
    assert len(dispatcher.published(REPORT_REQUESTED)) == 1


def test_versions_known_before_the_table_of_versions_are_still_known(tmp_path: Path) -> None:
    with closing(Database(f"sqlite:///{tmp_path}/dispatcher.sqlite3")) as database:
        dispatcher = Dispatcher(database, tmp_path)
        uid = new_uid()
        dispatcher.study(uid, 3)
        config = alembic.config.Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with database.engine.begin() as connection:
            config.attributes["connection"] = connection
            alembic.command.downgrade(config, "0002")
        database.migrate(MIGRATIONS)
        dispatcher.study(uid, 2)
        assert len(dispatcher.published(REPORT_REQUESTED)) == 1
        with database.read() as connection:
            assert connection.execute(sa.select(tables.versions.c.newest)).all() == [(3,)]


def test_done_takes_the_manifest_away(dispatcher: Dispatcher) -> None:
    job = dispatcher.study(new_uid())
    dispatcher.relay.relay_once()
    dispatcher.answer(REPORT_STARTED, dispatcher.job(job))
    assert dispatcher.job(job).started_at == NOW
    dispatcher.answer(REPORT_GENERATED, dispatcher.job(job))
    dispatcher.relay.relay_once()
    assert list(dispatcher.store.keys("manifests")) == []


def test_a_retry_waits_and_a_retry_not_handed_over_yet_can_be_taken_back(dispatcher: Dispatcher) -> None:
    uid = new_uid()
    job = dispatcher.study(uid)
    dispatcher.relay.relay_once()
    dispatcher.answer(REPORT_STARTED, dispatcher.job(job))
    dispatcher.answer(REPORT_FAILED, dispatcher.job(job))
    dispatcher.relay.relay_once()
    assert len(dispatcher.broker.tasks) == 1
    assert [event["data"]["attempt"] for event in dispatcher.published(REPORT_REQUESTED)] == [1, 2]
    dispatcher.study(uid, 2)
    dispatcher.clock.advance(60)
    dispatcher.relay.relay_once()
    assert [task[:2] for task in dispatcher.broker.tasks] == [(job, 1), (job_id(uid, 2, "default"), 1)]


def test_the_last_failure_is_announced_once_and_final(dispatcher: Dispatcher) -> None:
    job = dispatcher.study(new_uid())
    for _ in range(3):
        dispatcher.answer(REPORT_STARTED, dispatcher.job(job))
        dispatcher.answer(REPORT_FAILED, dispatcher.job(job))
    (event,) = dispatcher.published(REPORT_FAILED)
    assert (event["data"]["error_code"], event["data"]["retryable"]) == ("attempts_exhausted", False)
    dispatcher.hear(Event.from_bytes(json.dumps(event).encode()))  # our own event comes by
    assert len(dispatcher.published(REPORT_FAILED)) == 1
    assert dispatcher.job(job).state == "failed"
    assert dispatcher.outstanding()["outstanding"] == 0


def test_a_broker_that_forgot_everything_gets_it_again(dispatcher: Dispatcher) -> None:
    jobs = {dispatcher.study(new_uid()) for _ in range(3)}
    dispatcher.relay.relay_once()
    dispatcher.clock.advance(119)
    assert dispatcher.sweep() == 0
    dispatcher.clock.advance(2)
    dispatcher.broker.tasks.clear()
    assert dispatcher.sweep(caught_up=False) == 0
    assert dispatcher.sweep() == 3
    dispatcher.relay.relay_once()
    assert {(task[0], task[1]) for task in dispatcher.broker.tasks} == {(job, 2) for job in jobs}
    assert len(list(dispatcher.store.keys("manifests"))) == 3  # those of the first attempts are gone
    assert {event["data"]["suspect"] for event in dispatcher.published(REPORT_REQUESTED)} == {False}


def test_what_only_waits_in_a_long_queue_stays_in_its_place(dispatcher: Dispatcher) -> None:
    for _ in range(3):
        dispatcher.study(new_uid())
    dispatcher.relay.relay_once()
    for _ in range(20):
        dispatcher.clock.advance(121)
        assert dispatcher.sweep() == 3
        assert dispatcher.sweep() == 0
    assert dispatcher.relay.relay_once() == 0
    assert len(dispatcher.published(REPORT_REQUESTED)) == 3


def test_no_more_is_handed_over_than_the_workers_need_and_what_is_urgent_at_once(dispatcher: Dispatcher) -> None:
    dispatcher.relay = dispatcher.new_relay(ahead=2)
    first, second, third, fourth = (dispatcher.study(new_uid()) for _ in range(4))

    def handed() -> list[str]:
        before = len(dispatcher.broker.tasks)
        while dispatcher.relay.relay_once():
            pass
        return [task[0] for task in dispatcher.broker.tasks[before:]]

    assert handed() == [first, second]
    urgent = dispatcher.study(new_uid(), callers=["ER"])
    assert handed() == [urgent]
    assert (dispatcher.outstanding()["outstanding"], dispatcher.outstanding()["handed_over"]) == (5, 3)
    dispatcher.answer(REPORT_GENERATED, dispatcher.job(urgent))
    assert handed() == [], "two are still there"
    dispatcher.answer(REPORT_STARTED, dispatcher.job(first))
    dispatcher.answer(REPORT_FAILED, dispatcher.job(first))
    dispatcher.clock.advance(60)
    assert handed() == [first], "what was begun before goes before what was not"
    dispatcher.answer(REPORT_GENERATED, dispatcher.job(first))
    dispatcher.answer(REPORT_GENERATED, dispatcher.job(second))
    assert handed() == [third, fourth]


def test_what_is_held_back_is_not_lost_with_the_broker(dispatcher: Dispatcher) -> None:
    dispatcher.relay = dispatcher.new_relay(ahead=2)
    jobs = [dispatcher.study(new_uid()) for _ in range(4)]
    dispatcher.relay.relay_once()
    dispatcher.broker.tasks.clear()
    dispatcher.clock.advance(121)
    dispatcher.sweep()
    assert [dispatcher.job(job).attempt for job in jobs] == [2, 2, 1, 1]
    dispatcher.relay.relay_once()
    assert [task[:2] for task in dispatcher.broker.tasks] == [(jobs[0], 2), (jobs[1], 2)]
    dispatcher.clock.advance(121)
    dispatcher.sweep()
    assert [dispatcher.job(job).attempt for job in jobs] == [2, 2, 1, 1], "all that was handed over is there"


def test_while_the_broker_is_away_nothing_is_called_lost(dispatcher: Dispatcher) -> None:
    job = dispatcher.study(new_uid())
    dispatcher.clock.advance(1000)
    dispatcher.broker.away = True
    with pytest.raises(QueueUnavailable):
        dispatcher.sweep()
    dispatcher.broker.away = False
    dispatcher.sweep()  # still in our own outbox: not lost either
    assert dispatcher.job(job).attempt == 1


def test_a_worker_that_went_silent_is_given_up_after_three_starts(dispatcher: Dispatcher) -> None:
    job = dispatcher.study(new_uid())
    for attempt in (1, 2, 3):
        dispatcher.relay.relay_once()
        assert dispatcher.job(job).attempt == attempt
        dispatcher.answer(REPORT_STARTED, dispatcher.job(job))
        dispatcher.clock.advance(301)
        dispatcher.sweep()
    (event,) = dispatcher.published(REPORT_FAILED)
    assert event["data"]["error_code"] == "attempts_exhausted"
    assert dispatcher.job(job).finished_at == dispatcher.clock.now()
    assert [told["data"]["suspect"] for told in dispatcher.published(REPORT_REQUESTED)] == [False, True, True]


def test_after_a_change_of_the_model_version_old_jobs_are_done_by_the_new_one(dispatcher: Dispatcher) -> None:
    uid = new_uid()
    job = dispatcher.study(uid)
    handlers = Handlers(Policy(), dispatcher.limits, "2", dispatcher.clock)
    dispatcher.by_type = event_handlers(handlers, dispatcher.clock)
    for _ in range(5):  # no worker of either version
        dispatcher.answer(REPORT_FAILED, dispatcher.job(job), error_code="wrong_model_version")
    asked = [told["data"]["model_version"] for told in dispatcher.published(REPORT_REQUESTED)]
    assert asked == ["default"] + 5 * ["2"]
    assert (dispatcher.job(job).state, dispatcher.job(job).starts) == ("queued", 0)
    assert dispatcher.published(REPORT_FAILED) == []
    dispatcher.hear(completed(uid))  # told again: it is one job all the same
    assert dispatcher.outstanding()["outstanding"] == 1
    dispatcher.answer(REPORT_FAILED, dispatcher.job(job), retryable=False)
    with dispatcher.units.write() as unit:
        assert Handlers(Policy(), dispatcher.limits, "3", dispatcher.clock).replay(unit, dispatcher.job(job))
    assert dispatcher.published(REPORT_REQUESTED)[-1]["data"]["model_version"] == "3"


def test_words_about_jobs_nobody_knows_are_harmless(dispatcher: Dispatcher) -> None:
    job = dispatcher.study(new_uid())
    known = dispatcher.job(job)
    with dispatcher.database.write() as connection:
        connection.execute(tables.jobs.delete())
    for type_ in (REPORT_STARTED, REPORT_GENERATED, REPORT_FAILED):
        dispatcher.answer(type_, known)


def test_outstanding(dispatcher: Dispatcher) -> None:
    first = dispatcher.study(new_uid(), callers=["ER"])
    dispatcher.relay.relay_once()
    dispatcher.clock.advance(10)
    dispatcher.study(new_uid())
    dispatcher.answer(REPORT_STARTED, dispatcher.job(first))
    dispatcher.clock.advance(5)
    nothing = {"outstanding": 0, "queued": 0, "running": 0, "oldest_age_s": 0.0}
    assert dispatcher.outstanding() == {
        "outstanding": 2,
        "queued": 1,
        "running": 1,
        "handed_over": 1,
        "oldest_age_s": 15.0,
        "queues": {
            "reports.stat": nothing | {"outstanding": 1, "running": 1, "oldest_age_s": 15.0},
            "reports.routine": nothing | {"outstanding": 1, "queued": 1, "oldest_age_s": 5.0},
        },
        "waiting_for_a_person": {"held": 0, "failed": 0, "dead_letters": 0},
    }


def test_a_clock_that_jumps_back_gives_no_negative_age(dispatcher: Dispatcher) -> None:
    dispatcher.study(new_uid())
    dispatcher.clock.set_wall(NOW - timedelta(hours=1))
    assert dispatcher.outstanding()["oldest_age_s"] == 0.0
