"""SIGKILL between any two steps of receiving: what was acknowledged is there, whole; what was not can be sent again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dicom_listener.adapters.object_index import SqlObjectIndex
from dicom_listener.adapters.staging import clear_leftovers
from dicom_listener.adapters.tables import instances, outbox
from dicom_listener.handlers.sweep import Sweeper, UnderWay
from integration.dicom_listener.peers import DX, Listener, Sender, encoded, image, listening, new_uid, wait_for
from pipeline.clock import SystemClock
from pipeline.events import STUDY_COMPLETED, STUDY_OPENED, Event
from pipeline.outbox import OutboxRelay
from pipeline.sql_bus import SqlBus

POINTS = [
    ("chunk_written", 40),
    ("before_rename", 3),
    ("file_renamed", 3),
    ("row_committed", 3),
    ("success_sent", 3),
    ("before_publishing", 1),
    ("published", 1),
]


class Forks:
    """Starts listeners that kill themselves."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("killed_at.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def start(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def ended(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    running = Forks()
    yield running
    assert running.process.stdin is not None
    running.process.stdin.close()
    running.process.wait(timeout=60)
    assert running.process.stdout is not None
    running.process.stdout.close()


def ready_port(log: Path) -> int:
    ports: list[int] = []

    def is_ready() -> bool:
        lines = log.read_text().splitlines() if log.exists() else []
        ports[:] = [json.loads(line)["dicom_port"] for line in lines if '"message": "ready"' in line]
        return bool(ports)

    wait_for(is_ready, 180)
    return ports[0]


@pytest.mark.parametrize(("point", "nth"), POINTS)
def test_killed(tmp_path: Path, forks: Forks, point: str, nth: int) -> None:
    url, bus_url, folder = f"sqlite:///{tmp_path}/l.sqlite3", f"sqlite:///{tmp_path}/bus.sqlite3", tmp_path / "objects"
    environment = {
        "ECHO_DATABASE_URL": url,
        "ECHO_BUS_URL": bus_url,
        "ECHO_OBJECT_STORE_URL": f"file://{folder}",
        "ECHO_DICOM_HOST": "127.0.0.1",
        "ECHO_DICOM_PORT": "0",
        "ECHO_HTTP_HOST": "127.0.0.1",
        "ECHO_HTTP_PORT": "0",
        "ECHO_MIN_FREE_BYTES": "0",
        "ECHO_QUIET_SECONDS": "600",
        "ECHO_RELEASE_SECONDS": "600",
        "ECHO_MAXIMUM_PDU_BYTES": "16384",
    }
    forks.start(point=point, nth=nth, environment=environment, log=str(tmp_path / "log"))
    sender = Sender(ready_port(tmp_path / "log"))
    study = new_uid()
    images = [image(study, size=400) for _ in range(4)]
    acknowledged: list[str] = []
    for ds in images:
        if not sender.assoc.is_established or sender.send(ds) != 0:
            break
        acknowledged.append(str(ds.SOPInstanceUID))
    if sender.assoc.is_established:
        wait_for(lambda: not sender.assoc.is_established)
    assert forks.ended() == -9, (tmp_path / "log").read_text()
    assert len(acknowledged) < 4 or point in ("before_publishing", "published")

    with listening(url, folder) as listener:
        check(listener, acknowledged, {str(ds.SOPInstanceUID): encoded(ds) for ds in images})
        clear_leftovers(listener.store.staging_dir())
        sweep(listener)
        assert listener.staged() == []
        rows = {row.object_key for row in listener.rows(instances)}
        assert set(listener.store.keys("objects")) == rows  # no orphan, no row without an object
        listener.loop.adopt()
        with Sender(listener.port) as again:  # the sender tries everything again, as a PACS does
            assert [again.store(encoded(ds), DX, ds.SOPInstanceUID) for ds in images] == [0] * 4
        listener.step_until(1)
        assert {row.sop_instance_uid for row in listener.rows(instances)} == {ds.SOPInstanceUID for ds in images}
        check_events(listener, bus_url, len(images))


def check(listener: Listener, acknowledged: list[str], sent: dict[str, bytes]) -> None:
    rows = {row.sop_instance_uid: row for row in listener.rows(instances)}
    assert set(acknowledged) <= set(rows)
    for uid, row in rows.items():
        assert listener.data_set(row.object_key) == sent[uid]  # whole, acknowledged or not


def sweep(listener: Listener) -> None:
    clock = SystemClock()
    Sweeper(
        listener.store,
        SqlObjectIndex(listener.database, clock),
        UnderWay(),
        clock,
        orphan_grace=timedelta(0),
        keep_objects=None,
        keep_refusals=timedelta(days=90),
        interval=timedelta(hours=1),
    ).sweep(threading.Event())


def check_events(listener: Listener, bus_url: str, count: int) -> None:
    """Each event is on the bus at least once, and twice only under the same id."""
    bus = SqlBus(bus_url, partitions=6)
    relay = OutboxRelay(listener.database, outbox, bus.producer(), SystemClock())
    while relay.relay_once():
        pass
    consumer = bus.consumer("test", [STUDY_OPENED, STUDY_COMPLETED])
    events: dict[str, Event] = {}
    types = {STUDY_OPENED, STUDY_COMPLETED}

    def all_read() -> bool:
        events.update({event.id: event for event in (Event.from_bytes(r.value) for r in consumer.poll(0.2))})
        return {event.type for event in events.values()} == types

    wait_for(all_read)
    consumer.close()
    bus.close()
    assert len(events) == 2
    (completed,) = [event for event in events.values() if event.type == STUDY_COMPLETED]
    assert len(completed.data["instances"]) == count
