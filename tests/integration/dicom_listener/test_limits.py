"""Who may in, how much, for how long; and that each "no" can be found afterwards, with its reason."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dicom_listener.domain.access import AccessRule
from integration.dicom_listener.peers import Listener, Sender, image, listening, wait_for, wait_until_equal
from pipeline.events import DICOM_REFUSED

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
ELSEWHERE = (ipaddress.ip_network("192.0.2.0/24"),)


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Listener]:
    rules = [AccessRule("ECHO", "SENDER", LOOPBACK), AccessRule("ECHO2", "FAR", ELSEWHERE)]
    with listening(
        f"sqlite:///{tmp_path}/l.sqlite3",
        tmp_path / "o",
        access=rules,
        maximum_associations=3,
        maximum_associations_per_peer=2,
        maximum_object_bytes=100_000,
    ) as running:
        yield running


def reasons(listener: Listener) -> list[tuple[Any, ...]]:
    return [(row.scope, row.reason, row.answer, row.calling_ae_title) for row in listener.refusals()]


def rejected_with(sender: Sender) -> tuple[int, int, int]:
    answer = sender.assoc.acceptor.primitive
    assert sender.assoc.is_rejected
    return (answer.result, answer.result_source, answer.diagnostic)


def test_allow_lists(strict: Listener) -> None:
    assert rejected_with(Sender(strict.port, called="NOBODY")) == (1, 1, 7)
    assert rejected_with(Sender(strict.port, calling="STRANGER")) == (1, 1, 3)
    assert rejected_with(Sender(strict.port, calling="FAR", called="ECHO2")) == (1, 1, 1)
    with Sender(strict.port) as sender:
        assert sender.send(image()) == 0
    assert reasons(strict) == [
        ("association", "called_ae_title_unknown", "1/1/7", "SENDER"),
        ("association", "calling_ae_title_not_allowed", "1/1/3", "STRANGER"),
        ("association", "network_not_allowed", "1/1/1", "FAR"),
    ]


def test_each_refusal_is_published(strict: Listener) -> None:
    Sender(strict.port, calling="STRANGER")
    strict.refusals()
    (event,) = [event for event in strict.events() if event.type == DICOM_REFUSED]
    assert event.data["reason"]["code"] == "calling_ae_title_not_allowed"
    assert (event.data["calling_ae_title"], event.data["called_ae_title"]) == ("STRANGER", "ECHO")
    assert (event.data["address"], event.data["status"], event.data["count"]) == ("127.0.0.1", "1/1/3", 1)


def test_associations_per_peer(strict: Listener) -> None:
    with Sender(strict.port) as first, Sender(strict.port):
        assert rejected_with(Sender(strict.port)) == (2, 3, 2)
        assert first.send(image()) == 0
    wait_for(lambda: not strict.scp._server.active_associations)
    with Sender(strict.port) as again:
        assert again.send(image()) == 0
    assert [reason for _, reason, _, _ in reasons(strict)] == ["too_many_associations_of_peer"]


def test_object_size(strict: Listener) -> None:
    big = image(size=400)
    with Sender(strict.port) as sender:
        assert sender.send(big) == 0xA701
        assert strict.staged() == []
        assert sender.send(image()) == 0
    assert reasons(strict) == [("object", "object_too_large", "A701", "SENDER")]


@pytest.mark.parametrize(
    ("sent", "reason"), [(b"", "no_association_request"), (b"\x01\x00\x00\x00\x00\xcd\x00\x01", "stalled_pdu")]
)
def test_silence_before_the_request_ends_the_connection(tmp_path: Path, sent: bytes, reason: str) -> None:
    with (
        # Its time begins when the listener takes the connection, so it must be long enough to send a few bytes in.
        listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "o", request_timeout_seconds=3.0) as listener,
        socket.create_connection(("127.0.0.1", listener.port)) as silent,
    ):
        silent.sendall(sent)
        silent.settimeout(90)
        assert silent.recv(100)[:1] in (b"", b"\x07")
        wait_until_equal(lambda: [each for _, each, _, _ in reasons(listener)], [reason])
        wait_for(lambda: not listener.scp._server.active_associations)


def test_a_probe_that_only_connects_is_no_refusal(strict: Listener) -> None:
    for _ in range(3):
        socket.create_connection(("127.0.0.1", strict.port)).close()
    with Sender(strict.port) as sender:  # accepted after them
        assert sender.assoc.send_c_echo().Status == 0
    wait_for(lambda: not strict.scp._connections)
    assert reasons(strict) == []


def test_too_many_connections_are_closed_at_once(strict: Listener) -> None:
    open_ones = [socket.create_connection(("127.0.0.1", strict.port)) for _ in range(60)]
    try:
        wait_for(lambda: "too_many_connections" in [reason for _, reason, _, _ in reasons(strict)])
    finally:
        for each in open_ones:
            each.close()
    wait_for(lambda: strict.scp._room() >= 35)
    with Sender(strict.port) as sender:
        assert sender.send(image()) == 0


def test_a_pdu_longer_than_negotiated_ends_the_association(tmp_path: Path) -> None:
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "o", maximum_pdu_bytes=16_384) as listener:
        sender = Sender(listener.port)
        sender.assoc.dul.socket.send(struct.pack(">BBL", 4, 0, 2**32 - 1) + bytes(100))
        wait_for(lambda: sender.assoc.is_aborted)
        assert [reason for _, reason, _, _ in reasons(listener)] == ["pdu_too_long"]
        with Sender(listener.port) as again:
            assert again.send(image()) == 0


def test_a_sender_that_falls_silent_is_told_to_people(tmp_path: Path) -> None:
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "o", network_timeout_seconds=0.4) as listener:
        sender = Sender(listener.port)
        wait_for(lambda: sender.assoc.is_aborted)
        wait_until_equal(lambda: [reason for _, reason, _, _ in reasons(listener)], ["idle_timeout"])
