"""Every line of the table of malformed input, over a bare socket."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from dicom_listener.adapters.tables import instances
from dicom_listener.domain.access import AccessRule
from integration.dicom_listener.malformed import CASES, Case, table
from integration.dicom_listener.peers import Listener, listening, wait_for
from integration.dicom_listener.wire import Wire, element, message, padded

ECHO = b"".join(
    [element(0x2, padded("1.2.840.10008.1.1")), element(0x100, 0x30), element(0x110, 7), element(0x800, 0x101)]
)


SILENCE = ("stalled_pdu", "idle_timeout")


def listeners(folder: Path, seconds: float) -> AbstractContextManager[Listener]:
    return listening(
        f"sqlite:///{folder}/l.sqlite3",
        folder / "o",
        access=[AccessRule("ECHO", "RAW", (ipaddress.ip_network("127.0.0.1"),))],
        request_timeout_seconds=seconds,
        network_timeout_seconds=seconds,
    )


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    with listeners(tmp_path_factory.mktemp("malformed"), 90) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    """Silence is soon over here: nothing else is sent to it."""
    with listeners(tmp_path_factory.mktemp("silence"), 3) as running:
        yield running


@pytest.fixture
def listener(case: Case, request: pytest.FixtureRequest) -> Listener:
    running: Listener = request.getfixturevalue("impatient" if case.reason in SILENCE else "patient")
    return running


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.level}: {case.what}")
def test_malformed(listener: Listener, case: Case) -> None:
    listener.refusals()
    known = len(listener.refusals())
    rows = len(listener.rows(instances))
    with Wire(listener.port) as wire:
        if case.associated:
            wire.associate()
        case.send(wire)
        assert wire.answer() == case.answer
    if case.reason is None:
        wait_for(lambda: not listener.scp._connections)
        assert listener.refusals()[known:] == []
    else:
        wait_for(lambda: len(listener.refusals()) > known)
        assert {row.reason for row in listener.refusals()[known:]} == {case.reason}
    wait_for(lambda: not listener.staged())
    added = len(listener.rows(instances)) - rows
    if "200 requests" in case.what:  # the sender left after the first answer; it had sent the same five again and again
        assert 1 <= added <= 5
    else:
        assert added == (case.answer == "status 0000")
    with Wire(listener.port) as wire:
        wire.associate()
        wire.send(message(3, ECHO))
        assert wire.answer() == "status 0000"


def test_the_table_has_enough_of_each_kind_and_stands_in_the_docs() -> None:
    assert len(CASES) >= 60
    assert {case.level for case in CASES} == {"PDU", "DIMSE", "data set"}
    written = (Path(__file__).parents[3] / "docs" / "malformed-input.md").read_text()
    assert written == table(), "write it anew: PYTHONPATH=tests python tests/integration/dicom_listener/malformed.py"
