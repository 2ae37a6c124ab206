"""Every line of the table of malformed STOW-RS requests, over a bare socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from dicom_listener.adapters.tables import instances
from integration.dicom_listener.malformed_stow import STOW_CASES, StowCase
from integration.dicom_listener.peers import Listener, image, listening, wait_for
from integration.dicom_listener.stow_peers import CONTENT_TYPE, body_of, part10, stow_door


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    folder = tmp_path_factory.mktemp("malformed")
    with listening(f"sqlite:///{folder}/l.sqlite3", folder / "o") as running:
        yield running


@pytest.fixture(scope="module")
def patient(listener: Listener) -> Iterator[str]:
    with stow_door(listener) as address:
        yield address


@pytest.fixture(scope="module")
def impatient(listener: Listener) -> Iterator[str]:
    """Silence is soon over here: nothing else is sent to it."""
    with stow_door(listener, silence_seconds=3) as address:
        yield address


@pytest.fixture
def url(case: StowCase, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("impatient" if case.reason == "idle_timeout" else "patient"))


@pytest.mark.parametrize("case", STOW_CASES, ids=lambda case: case.what)
def test_malformed(listener: Listener, url: str, case: StowCase) -> None:
    known, rows = len(listener.refusals()), len(listener.rows(instances))
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0)) as sender:
        sender.settimeout(60)
        sender.sendall(case.request)
        assert sender.recv(12, socket.MSG_WAITALL).decode() == f"HTTP/1.1 {case.answer}"
    found = [row.reason for row in listener.refusals()[known:]]
    assert found == ([] if case.reason is None else [case.reason])
    wait_for(lambda: not listener.staged())
    assert len(listener.rows(instances)) - rows == (case.answer == 200)
    answer = httpx.post(url, content=body_of(part10(image())), headers={"content-type": CONTENT_TYPE}, timeout=60)
    assert answer.status_code == 200
