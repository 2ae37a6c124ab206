"""The real process: start, stop, SIGKILL, wrong settings, events on the bus."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.dicom_listener.peers import (
    DX,
    Sender,
    data_set_bytes,
    encoded,
    half_a_message,
    image,
    new_uid,
    sqlite_rows,
    wait_for,
)
from pipeline.buses import make_bus
from pipeline.events import ALL_TOPICS, STUDY_COMPLETED, STUDY_OPENED, Event
from pipeline.settings import BusSettings


class Process:
    """`python -m dicom_listener` on one data folder; it can be started again there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.child: subprocess.Popen[bytes] | None = None
        self.fields: dict[str, Any] = {}

    def environment(self, **settings: object) -> dict[str, str]:
        chosen = {
            "ECHO_DATABASE_URL": f"sqlite:///{self.folder}/l.sqlite3",
            "ECHO_BUS_URL": f"sqlite:///{self.folder}/bus.sqlite3",
            "ECHO_OBJECT_STORE_URL": f"file://{self.folder}/objects",
            "ECHO_DICOM_HOST": "127.0.0.1",
            "ECHO_DICOM_PORT": "0",
            "ECHO_HTTP_HOST": "127.0.0.1",
            "ECHO_HTTP_PORT": "0",
            "ECHO_MIN_FREE_BYTES": "0",
            "ECHO_QUIET_SECONDS": "60",
            "ECHO_RELEASE_SECONDS": "0.2",
            **{f"ECHO_{name.upper()}": str(value) for name, value in settings.items()},
        }
        return {**{k: v for k, v in os.environ.items() if not k.startswith("ECHO_")}, **chosen}

    def start(self, **settings: object) -> None:
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "dicom_listener"], env=self.environment(**settings), stderr=log, stdout=log
            )
        wait_for(self.is_ready, 180)

    def is_ready(self) -> bool:
        assert self.child is not None
        assert self.child.poll() is None, self.log.read_text()
        for line in self.log.read_text().splitlines():
            if '"message": "ready"' in line:
                self.fields = json.loads(line)
                return True
        return False

    @property
    def port(self) -> int:
        return int(self.fields["dicom_port"])

    def end(self, signum: int) -> int:
        assert self.child is not None
        self.child.send_signal(signum)
        return self.child.wait(timeout=90)

    def rows(self, query: str) -> list[Any]:
        return sqlite_rows(self.folder / "l.sqlite3", query)

    def staged(self) -> list[Path]:
        return list((self.folder / "objects" / ".staging").iterdir())

    def events(self, count: int) -> list[Event]:
        """The first `count` events on the bus, waited for."""
        bus = make_bus(BusSettings(bus_url=f"sqlite:///{self.folder}/bus.sqlite3"))
        consumer = bus.consumer(f"test-{new_uid()}", list(ALL_TOPICS))
        events: list[Event] = []
        deadline = time.monotonic() + 90
        while len(events) < count and time.monotonic() < deadline:
            events += [Event.from_bytes(record.value) for record in consumer.poll(0.2)]
        consumer.close()
        bus.close()
        return events


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    running = Process(tmp_path)
    yield running
    if running.child is not None and running.child.poll() is None:
        running.child.kill()
        running.child.wait()


def test_life_of_a_study_and_of_the_process(process: Process) -> None:
    process.start()
    with urllib.request.urlopen(f"http://127.0.0.1:{process.fields['http_port']}/readyz") as response:
        answer = json.load(response)
    assert answer["checks"] == {"database": "ok", "object_store": "ok", "dicom_port": "ok"}
    ds = image()
    with Sender(process.port) as sender:
        assert sender.send(ds) == 0
    events = process.events(2)
    assert sorted(event.type for event in events) == [STUDY_COMPLETED, STUDY_OPENED]
    assert {event.key for event in events} == {ds.StudyInstanceUID}
    with urllib.request.urlopen(f"http://127.0.0.1:{process.fields['http_port']}/metrics") as response:
        metrics = response.read().decode()
    assert 'echo_dicom_objects_total{status="0000"} 1.0' in metrics
    assert process.end(signal.SIGTERM) == 0
    log = process.log.read_text()
    assert str(ds.StudyInstanceUID) not in log
    assert str(ds.PatientID) not in log


def test_sigterm_lets_a_running_association_finish(process: Process) -> None:
    process.start(drain_seconds=60)
    assert process.child is not None
    with Sender(process.port) as sender:
        assert sender.send(image()) == 0
        process.child.send_signal(signal.SIGTERM)
        wait_for(lambda: '"message": "stopping"' in process.log.read_text())
        assert Sender(process.port).assoc.is_rejected
        assert sender.send(image()) == 0
    assert process.child.wait(timeout=90) == 0
    assert process.rows("select count(*) from instances") == [(2,)]


def test_sigterm_does_not_wait_for_ever(process: Process) -> None:
    process.start(drain_seconds=0.3, network_timeout_seconds=600)
    sender = Sender(process.port)
    half_a_message(sender, encoded(image(size=512)), new_uid())
    wait_for(process.staged)
    assert process.end(signal.SIGTERM) == 0
    sender.assoc.abort()


def test_sigkill_in_the_middle_loses_nothing_acknowledged(process: Process) -> None:
    process.start()
    study = new_uid()
    acknowledged: dict[str, bytes] = {}

    def send(number: int) -> None:
        sender = Sender(process.port, calling=f"S{number}")
        while sender.assoc.is_established:
            ds = image(study, size=700)
            data = encoded(ds)
            if sender.store(data, DX, ds.SOPInstanceUID) != 0:
                break
            acknowledged[ds.SOPInstanceUID] = data

    threads = [threading.Thread(target=send, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    half = Sender(process.port)
    half_a_message(half, encoded(image(size=900)), new_uid())
    wait_for(lambda: len(acknowledged) > 6)
    assert process.end(signal.SIGKILL) == -signal.SIGKILL
    for thread in threads:
        thread.join()
    assert process.staged()  # the half object, at least

    process.start()
    assert process.staged() == []
    rows = dict(process.rows("select sop_instance_uid, object_key from instances"))
    assert set(acknowledged) <= set(rows)
    for uid, data in acknowledged.items():
        assert data_set_bytes(process.folder / "objects" / rows[uid]) == data
    events = process.events(2)
    completed = next(event for event in events if event.type == STUDY_COMPLETED)
    assert completed.data["reason"] == "association_released"  # the process took its associations with it
    assert {each["sop_instance_uid"] for each in completed.data["instances"]} == set(rows)
    assert process.end(signal.SIGTERM) == 0


def test_a_restart_between_image_and_completeness_changes_nothing(process: Process) -> None:
    process.start(release_seconds=60)
    with Sender(process.port) as sender:
        assert sender.send(image()) == 0
    assert process.end(signal.SIGTERM) == 0
    assert process.rows("select state from studies") == [("open",)]
    process.start(release_seconds=0.2)
    wait_for(lambda: process.rows("select state, version from studies") == [("complete", 1)])
    assert process.end(signal.SIGTERM) == 0


def fails(process: Process, **settings: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dicom_listener"],
        env=process.environment(**settings),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_port_in_use(process: Process) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = fails(process, dicom_port=port)
    assert f"wrong setting ECHO_DICOM_PORT: port {port} on 127.0.0.1 is in use" in message


def test_wrong_setting(process: Process) -> None:
    assert "wrong setting ECHO_QUIET_SECONDS: is 'soon'" in fails(process, quiet_seconds="soon")
