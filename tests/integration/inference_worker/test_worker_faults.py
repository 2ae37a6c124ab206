"""Workers, brokers and signals that fail in the middle: nothing lost, nothing done for ever."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import redis

from inference_worker.adapters.celery_worker import make_app
from integration.inference_worker.rig import Process, Rig, eventually, radiograph
from pipeline.events import REPORT_FAILED, REPORT_GENERATED, REPORT_STARTED
from pipeline.taskqueue import celery_config
from servers.cut_proxy import CutProxy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# Each time limit shorter than the next, as the settings ask. What takes no time by itself has to be done within the
# first of them, and what is to be done beside a study that hangs within the second.
QUICK_RETURN = {
    "ECHO_REQUEST_DEADLINE_S": "30",
    "ECHO_WATCHDOG_S": "31",
    "ECHO_TERMINATION_GRACE_S": "40",
    "ECHO_VISIBILITY_TIMEOUT_S": "33",
}


def kill_when_started(rig: Rig, worker: Process, uid: str, starts: int = 1) -> None:
    rig.wait_for(REPORT_STARTED, uid, starts)
    worker.kill()


def test_the_task_of_a_killed_worker_comes_back_and_is_done_alone(rig: Rig) -> None:
    dispatcher = rig.dispatcher(**QUICK_RETURN)
    uid = rig.send_study()
    worker = rig.slow_worker(600)  # it has no report before it is killed
    kill_when_started(rig, worker, uid)
    assert rig.unacknowledged() == 1
    rig.slow_worker(0.1, **QUICK_RETURN)
    (generated,) = rig.wait_for(REPORT_GENERATED, uid)
    assert generated.data["attempt"] == 1, rig.events(
        REPORT_FAILED, uid
    )  # the broker gave it again, not the dispatcher
    assert len(rig.wait_for(REPORT_STARTED, uid, 2)) == 2
    eventually(lambda: rig.outstanding(dispatcher)["outstanding"] == 0)


def test_a_broker_that_lost_everything_costs_no_study(rig: Rig) -> None:
    dispatcher = rig.dispatcher(ECHO_QUEUE_DEADLINE_S="3")
    waiting = [rig.send_study() for _ in range(3)]
    eventually(lambda: rig.redis.llen("reports.routine") == 3)
    rig.redis.flushall()
    worker = rig.slow_worker(0.1)
    for uid in waiting:
        rig.wait_for(REPORT_GENERATED, uid)
    rig.redis.flushall()  # under a worker that is connected
    after = rig.send_study()
    rig.wait_for(REPORT_GENERATED, after)
    eventually(lambda: rig.outstanding(dispatcher)["outstanding"] == 0)
    assert [len(rig.events(REPORT_GENERATED, uid)) for uid in waiting] == [1, 1, 1]
    assert worker.child.poll() is None


def test_a_study_that_kills_its_worker_each_time_is_stopped(rig: Rig) -> None:
    dispatcher = rig.dispatcher(ECHO_RUN_DEADLINE_S="1", ECHO_MAX_ATTEMPTS="2")
    uid = rig.send_study()
    for starts in (1, 2):
        worker = rig.slow_worker(600)
        kill_when_started(rig, worker, uid, starts)
    (failed,) = rig.wait_for(REPORT_FAILED, uid)
    assert failed.data["error_code"] == "attempts_exhausted"
    assert failed.data["retryable"] is False
    assert rig.outstanding(dispatcher)["outstanding"] == 0
    rig.slow_worker(0.1)
    good = rig.send_study()
    rig.wait_for(REPORT_GENERATED, good)
    assert len(rig.events(REPORT_STARTED, uid)) == 2


def test_sigterm_drains_and_a_second_one_gives_back(rig: Rig) -> None:
    rig.dispatcher()
    worker = rig.slow_worker(2)
    first = rig.send_study()
    rig.wait_for(REPORT_STARTED, first)
    worker.signal(signal.SIGTERM)
    assert worker.child.wait(180) == 0
    rig.wait_for(REPORT_GENERATED, first)
    assert rig.unacknowledged() == 0

    worker = rig.slow_worker(600)
    second = rig.send_study()
    rig.wait_for(REPORT_STARTED, second)
    worker.signal(signal.SIGTERM)
    eventually(lambda: worker.said("stopping"))
    worker.signal(signal.SIGTERM)
    assert worker.child.wait(180) == 1
    assert rig.unacknowledged() == 0
    assert rig.redis.llen("reports.routine") == 1
    rig.slow_worker(0.1)
    rig.wait_for(REPORT_GENERATED, second)


def test_a_model_that_hangs_ends_the_process_and_not_the_study_beside_it(rig: Rig) -> None:
    rig.dispatcher(**QUICK_RETURN)
    worker = rig.slow_worker(0.1, SLOW_MODEL_HANG_ROWS="32", **QUICK_RETURN)
    hanging = rig.send_study(data=radiograph(edge=16))
    rig.wait_for(REPORT_STARTED, hanging)
    beside = rig.send_study()
    rig.wait_for(REPORT_GENERATED, beside)
    assert worker.child.wait(180) == 70
    assert worker.said("hung, ending the process")
    rig.slow_worker(0.1, **QUICK_RETURN)
    rig.wait_for(REPORT_GENERATED, hanging)


def test_a_broker_that_is_gone_without_a_word_is_left_by_a_busy_worker(redis_url: str, tmp_path: Path) -> None:
    """Its node vanished, and another one answers at the same address: nothing resets the old connections."""
    server, _, number = redis_url.removeprefix("redis://").partition("/")
    proxy = CutProxy(server)
    rig = Rig(tmp_path, f"redis://127.0.0.1:{proxy.port}/{number}")
    rig.redis = redis.Redis.from_url(redis_url)
    try:
        rig.dispatcher()
        worker = rig.slow_worker(2)
        first = rig.send_study()
        rig.wait_for(REPORT_STARTED, first)
        proxy.silence()
        rig.wait_for(REPORT_GENERATED, first)
        second = rig.send_study()
        rig.wait_for(REPORT_GENERATED, second)
        eventually(lambda: rig.unacknowledged() == 0)  # the acknowledgement was under way when the node vanished
        assert worker.child.poll() is None
    finally:
        rig.close()
        proxy.close()


def test_an_idle_worker_stays_connected(redis_url: str) -> None:
    """What an idle worker waits for takes less than any of its time limits."""
    options = celery_config(redis_url, 60)["broker_transport_options"]
    app = make_app(redis_url, 60, 1, lambda *_: None)
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        assert (
            channel.client.connection_pool.connection_kwargs.items()
            >= {
                name: options[name]
                for name in ("socket_timeout", "socket_connect_timeout", "socket_keepalive", "health_check_interval")
            }.items()
        )
        assert channel.brpop_timeout < options["socket_timeout"]
        assert channel.brpop_timeout < options["health_check_interval"]
