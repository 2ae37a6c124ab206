"""The dispatcher on PostgreSQL, and with the worker on a Redis server of its own."""

from __future__ import annotations

import tempfile
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from integration.inference_worker.rig import Rig, eventually
from pipeline.database import Database
from pipeline.events import REPORT_FAILED, REPORT_GENERATED, REPORT_REQUESTED, REPORT_STARTED
from unit.dispatcher.studies import completed, new_uid
from unit.dispatcher.test_desk import Operated, buried, hear_letter
from unit.dispatcher.test_dispatching import Dispatcher


@pytest.mark.needs("postgres")
def test_a_job_on_postgresql(postgres_url: str, tmp_path: Path) -> None:
    with closing(Database(postgres_url)) as database:
        dispatcher = Dispatcher(database, tmp_path)
        uid = new_uid()
        old = dispatcher.study(uid)
        job = dispatcher.study(uid, 2)
        dispatcher.study(uid, 1)  # told again, late
        dispatcher.relay.relay_once()
        assert dispatcher.job(old).state == "superseded"
        for _ in range(3):
            dispatcher.answer(REPORT_STARTED, dispatcher.job(job))
            dispatcher.clock.advance(301)
            assert dispatcher.sweep() == 1
            dispatcher.relay.relay_once()
        assert dispatcher.job(job).error_code == "attempts_exhausted"
        assert [event["data"]["attempt"] for event in dispatcher.published(REPORT_REQUESTED)] == [1, 1, 2, 3]
        assert len(dispatcher.published(REPORT_FAILED)) == 1
        other = dispatcher.study(new_uid())
        dispatcher.clock.advance(7)
        assert dispatcher.outstanding()["queues"]["reports.routine"]["oldest_age_s"] == 7.0
        dispatcher.answer(REPORT_GENERATED, dispatcher.job(other))
        assert dispatcher.outstanding()["outstanding"] == 0


@pytest.mark.needs("postgres")
def test_what_people_decide_on_postgresql(postgres_url: str, tmp_path: Path) -> None:
    with closing(Database(postgres_url)) as database:
        dispatcher = Operated(database, tmp_path)
        dispatcher.relay = dispatcher.new_relay(pace=timedelta(seconds=10))
        uid = new_uid()
        dispatcher.unclear(uid)
        assert [held["study_instance_uid"] for held in dispatcher.desk.held()] == [uid]
        dispatcher.desk.release(uid)
        assert dispatcher.desk.held() == []
        second = dispatcher.study(new_uid())
        dispatcher.desk.pause("maintenance")
        dispatcher.desk.pause("again")
        dispatcher.relay.relay_once()
        assert dispatcher.broker.tasks == []
        paused = dispatcher.desk.paused()
        assert paused is not None
        assert paused["reason"] == "maintenance"
        dispatcher.desk.resume()
        assert dispatcher.relay.relay_once() == 1
        assert dispatcher.relay.relay_once() == 0
        dispatcher.clock.advance(10)
        assert dispatcher.relay.relay_once() == 1
        assert dispatcher.broker.tasks[-1][0] == second
        dispatcher.answer(REPORT_FAILED, dispatcher.job(second), error_code="pixels_undecodable", retryable=False)
        assert [job["job_id"] for job in dispatcher.desk.failed()] == [second]
        dispatcher.desk.replay(second)
        letter = buried(completed(new_uid()).to_bytes())
        hear_letter(dispatcher, letter)
        dispatcher.desk.replay_letter(letter.id)
        assert dispatcher.desk.failed() == dispatcher.desk.letters() == []


@pytest.mark.needs("redis")
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_dispatcher_and_worker_on_redis(redis_url: str) -> None:
    with tempfile.TemporaryDirectory(prefix="echo-rig-") as folder:
        rig = Rig(Path(folder), redis_url)
        try:
            dispatcher = rig.dispatcher(ECHO_STAT_CALLING_AE_TITLES="PACS")
            rig.slow_worker(0.1)
            uid = rig.send_study()
            (requested,) = rig.wait_for(REPORT_REQUESTED, uid)
            assert requested.data["priority"] == "stat"
            rig.wait_for(REPORT_GENERATED, uid)
            eventually(lambda: rig.outstanding(dispatcher)["outstanding"] == 0)
            eventually(lambda: rig.unacknowledged() == 0)
        finally:
            rig.close()
