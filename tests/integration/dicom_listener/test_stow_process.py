"""STOW-RS at the real process: SIGKILL and SIGTERM in the middle of a request, and the memory of a large one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from integration.dicom_listener.peers import data_set_bytes, encoded, image, new_uid, wait_for
from integration.dicom_listener.process import Process
from integration.dicom_listener.stow_peers import CONTENT_TYPE, body_of, listed, part10, pieces


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    running = Process(tmp_path)
    yield running
    running.kill()


def stow_url(process: Process) -> str:
    return f"http://127.0.0.1:{process.fields['stow_port']}/dicom-web/studies"


def post(url: str, body: Any) -> httpx.Response:
    return httpx.post(url, content=body, headers={"content-type": CONTENT_TYPE}, timeout=120)


class Halted:
    """A request that stops in the middle until it is let go."""

    def __init__(self, url: str, body: bytes, at: int) -> None:
        self._body, self._at = body, at
        self.go = threading.Event()
        self.answers: list[httpx.Response | str] = []
        self.thread = threading.Thread(target=self._run, args=(url,))
        self.thread.start()

    def _sent(self) -> Iterator[bytes]:
        yield from pieces(self._body[: self._at], 65_536)
        assert self.go.wait(120)
        yield from pieces(self._body[self._at :], 65_536)

    def _run(self, url: str) -> None:
        try:
            self.answers.append(post(url, self._sent()))
        except httpx.TransportError as error:
            self.answers.append(type(error).__name__)

    def end(self) -> httpx.Response | str:
        self.go.set()
        self.thread.join(120)
        return self.answers[0]


def test_killed_in_the_middle_of_a_request(process: Process) -> None:
    process.start(stow_port=0, stow_host="127.0.0.1")
    study = new_uid()
    images = {str(ds.SOPInstanceUID): ds for ds in (image(study, size=1500) for _ in range(4))}
    body = body_of(*[part10(ds) for ds in images.values()])
    halted = Halted(stow_url(process), body, len(body) * 5 // 8)
    wait_for(lambda: process.rows("select count(*) from instances") == [(2,)])
    wait_for(process.staged)
    process.kill()
    assert isinstance(halted.end(), str)
    for uid, key in process.rows("select sop_instance_uid, object_key from instances"):
        assert data_set_bytes(process.objects / key) == encoded(images[uid])
    process.start(stow_port=0, stow_host="127.0.0.1")
    assert process.staged() == []
    answer = post(stow_url(process), body)
    assert (answer.status_code, set(listed(answer))) == (200, set(images))
    assert process.rows("select count(*), sum(duplicates) from instances") == [(4, 2)]


def test_sigterm_lets_a_running_request_finish(process: Process) -> None:
    process.start(stow_port=0, stow_host="127.0.0.1", drain_seconds=60)
    assert process.child is not None
    body = body_of(*[part10(image(size=1500)) for _ in range(3)])
    halted = Halted(stow_url(process), body, len(body) // 2)
    wait_for(lambda: process.rows("select count(*) from instances") == [(1,)])
    process.child.send_signal(signal.SIGTERM)
    wait_for(lambda: '"message": "stopping"' in process.log.read_text())
    answer = halted.end()
    assert isinstance(answer, httpx.Response)
    assert (answer.status_code, len(listed(answer))) == (200, 3)
    assert process.child.wait(timeout=90) == 0


def test_a_large_study_takes_little_memory(process: Process) -> None:
    process.start(stow_port=0, stow_host="127.0.0.1")
    assert process.child is not None
    watched = psutil.Process(process.child.pid)
    assert post(stow_url(process), body_of(part10(image()))).status_code == 200
    before = watched.memory_info().rss
    files = [part10(image("2.25.3", size=5000)) for _ in range(6)]
    peak = [before]

    def sent() -> Iterator[bytes]:
        for piece in pieces(body_of(*files), 2**20):
            yield piece
            peak.append(watched.memory_info().rss)

    assert post(stow_url(process), sent()).status_code == 200
    size = sum(map(len, files))
    # Of the last object the head is looked at through a memory map, whose pages count as ours: one object, no more.
    assert max(peak) - before < size / 3
