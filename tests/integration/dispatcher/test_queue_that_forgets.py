"""A Redis that loses all it held at any moment, emptied or killed, while studies come and are worked on."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from integration.inference_worker.rig import Rig, answers, eventually
from pipeline.events import REPORT_FAILED, REPORT_GENERATED
from servers import env

pytestmark = [pytest.mark.needs("redis"), pytest.mark.slow, pytest.mark.timeout(1800)]


class OwnRedis:
    """A server that no other test uses, without any persistence."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        program = env.tool("redis-server")
        assert program is not None
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        with redis.Redis.from_url(self.url) as client:
            eventually(lambda: answers(client))
        return self.process

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def own_redis(free_port: Callable[[], int]) -> Iterator[OwnRedis]:
    server = OwnRedis(free_port())
    yield server
    server.kill()


def test_no_study_is_lost_however_often_the_queue_forgets(own_redis: OwnRedis) -> None:
    with tempfile.TemporaryDirectory(prefix="echo-rig-") as folder:
        rig = Rig(Path(folder), own_redis.url)
        try:
            dispatcher = rig.dispatcher(ECHO_QUEUE_DEADLINE_S="2", ECHO_MAX_ATTEMPTS="8", ECHO_RUN_DEADLINE_S="55")
            worker = rig.slow_worker(0.3)
            studies: list[str] = []
            for disaster in (rig.redis.flushall, rig.redis.flushall, own_redis.kill, rig.redis.flushall):
                studies += [rig.send_study() for _ in range(5)]
                # Some are done, some at work, some still queued.
                rig.wait_for(REPORT_GENERATED, studies[-5])
                disaster()
                if own_redis.process.poll() is not None:
                    studies.append(rig.send_study())  # while there is no server at all
                    own_redis.start()
            for uid in studies:
                rig.wait_for(REPORT_GENERATED, uid)
            eventually(lambda: rig.outstanding(dispatcher)["outstanding"] == 0)
            assert [event for uid in studies for event in rig.events(REPORT_FAILED, uid)] == []
            assert worker.child.poll() is None
        finally:
            rig.close()
