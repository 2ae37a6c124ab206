"""The real process: start, stop, SIGKILL, wrong settings, events on the bus."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from integration.dicom_listener.peers import (
    DX,
    Sender,
    data_set_bytes,
    encoded,
    half_a_message,
    image,
    new_uid,
    wait_for,
    wait_until_equal,
)
from integration.dicom_listener.process import Process
from pipeline.events import STUDY_COMPLETED, STUDY_OPENED


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    running = Process(tmp_path)
    yield running
    running.kill()


def test_life_of_a_study_and_of_the_process(process: Process) -> None:
    process.start()
    url = f"http://127.0.0.1:{process.fields['http_port']}"
    checks = {"database": "ok", "object_store": "ok", "dicom_port": "ok"}
    wait_until_equal(lambda: httpx.get(f"{url}/readyz", timeout=60).json(), {"status": "ready", "checks": checks})
    ds = image()
    with Sender(process.port) as sender:
        assert sender.send(ds) == 0
    events = process.events(2)
    assert sorted(event.type for event in events) == [STUDY_COMPLETED, STUDY_OPENED]
    assert {event.key for event in events} == {ds.StudyInstanceUID}

    wait_for(lambda: 'echo_dicom_objects_total{status="0000"} 1.0' in httpx.get(f"{url}/metrics", timeout=60).text)
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
        wait_for(lambda: Sender.is_rejected(process.port))  # the processes are told one after the other
        assert sender.send(image()) == 0
        ds = image()
        assert sender.store(b"no data set at all", ds.SOPClassUID, ds.SOPInstanceUID) == 0xC000
    assert process.ended() == 0
    assert process.rows("select count(*) from instances") == [(2,)]
    refused = dict(process.rows("select reason, quarantine_key is not null from refusals"))
    assert refused == {"draining": False, "truncated": True}


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

    half = Sender(process.port)
    half_a_message(half, encoded(image(size=900)), new_uid())
    wait_for(process.staged)
    threads = [threading.Thread(target=send, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
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


@pytest.mark.parametrize("setting", ["dicom_port", "stow_port", "http_port"])
@pytest.mark.parametrize("receiving_processes", [1, 2])
def test_port_in_use(process: Process, setting: str, receiving_processes: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        more = {"stow_host": "127.0.0.1", "receiving_processes": receiving_processes}
        message = fails(process, **more, **{setting: port})
    assert f"wrong setting ECHO_{setting.upper()}: port {port} on 127.0.0.1 is in use" in message


def test_wrong_setting(process: Process) -> None:
    assert "wrong setting ECHO_QUIET_SECONDS: is 'soon'" in fails(process, quiet_seconds="soon")
    assert "wrong setting ECHO_STORAGE_CLASSES" in fails(process, storage_classes='["DX"]')
