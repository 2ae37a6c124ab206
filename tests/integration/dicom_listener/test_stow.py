"""STOW-RS: what is kept, byte for byte; what is refused, and how the sender and people hear of it."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pynetdicom import ALL_TRANSFER_SYNTAXES

from dicom_listener.adapters.ledger import SqlLedger
from dicom_listener.adapters.parts import Exchange
from dicom_listener.adapters.tables import instances
from dicom_listener.domain.access import AccessRule
from dicom_listener.domain.watermark import Watermark
from dicom_listener.handlers.associations import Associations
from integration.dicom_listener.peers import (
    DX,
    Listener,
    Sender,
    encoded,
    image,
    listening,
    new_uid,
    wait_for,
    wait_until_equal,
)
from integration.dicom_listener.stow_peers import CONTENT_TYPE, body_of, listed, part10, pieces, reasons, stow_door
from pipeline.errors import TransientError
from pipeline.events import DICOM_REFUSED, STUDY_COMPLETED

TYPE = {"content-type": CONTENT_TYPE}


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "objects") as running:
        yield running


@pytest.fixture
def url(listener: Listener) -> Iterator[str]:
    with stow_door(listener) as address:
        yield address


def post(url: str, body: Any, **headers: str) -> httpx.Response:
    return httpx.post(url, content=body, headers={**TYPE, **headers}, timeout=90)


def why(listener: Listener) -> list[tuple[str, str | None]]:
    return [(row.reason, row.answer) for row in listener.refusals()]


@pytest.mark.parametrize("piece", [70_000, 999])
def test_every_transfer_syntax_is_kept_as_it_came(listener: Listener, url: str, piece: int) -> None:
    study = new_uid()
    images = [(image(study), syntax) for syntax in ALL_TRANSFER_SYNTAXES]
    sent = [(ds, syntax, encoded(ds, syntax)) for ds, syntax in images]
    files = [part10(ds, syntax, data) for ds, syntax, data in sent]
    answer = post(f"{url}/{study}", pieces(body_of(*files), piece))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom+json")
    assert listed(answer) == [str(ds.SOPInstanceUID) for ds, _, _ in sent]
    assert "00081198" not in answer.json()
    for ds, syntax, data in sent:
        row = listener.instance(ds.SOPInstanceUID)
        assert (row.transfer_syntax_uid, row.calling_ae_title) == (syntax, "STOW-RS")
        assert listener.data_set(row.object_key) == data
    assert listener.staged() == []
    listener.step_until(1)
    (event,) = [event for event in listener.events() if event.type == STUDY_COMPLETED]
    assert event.data["reason"] == "association_released"
    assert len(event.data["instances"]) == len(sent)


def test_a_look_at_open_studies_at_any_moment_loses_no_release(
    listener: Listener, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    associations, end = listener.receiver._associations, Exchange.end
    assert isinstance(associations, Associations)

    def end_and_look(self: Exchange) -> None:
        end(self)
        associations.carried()

    monkeypatch.setattr(Exchange, "end", end_and_look)
    study = new_uid()
    assert post(url, body_of(part10(image(study)))).status_code == 200
    assert set(associations.take_released()) == {study}


def test_both_doors_make_the_same_object(listener: Listener, url: str) -> None:
    ds = image()
    with Sender(listener.port) as sender:
        assert sender.send(ds) == 0
    assert post(url, body_of(part10(ds))).status_code == 200
    (row,) = listener.rows(instances)
    assert row.duplicates == 1


def test_a_large_study_in_pieces_of_any_size(listener: Listener, url: str) -> None:
    images = [image("2.25.77", size=1500) for _ in range(6)]
    answer = post(url, pieces(body_of(*[part10(ds) for ds in images]), 333_333))
    assert answer.status_code == 200
    for ds in images:
        assert listener.data_set(listener.instance(ds.SOPInstanceUID).object_key) == encoded(ds)


def test_some_objects_are_refused(listener: Listener, url: str) -> None:
    study = new_uid()
    good, other, cut = image(study), image(), image(study, size=300)
    cut_file = part10(cut)[:-50_000]
    rubbish, no_meta = b"rubbish", encoded(image(study))
    answer = post(f"{url}/{study}", body_of(part10(good), part10(other), cut_file, rubbish, no_meta))
    assert answer.status_code == 202
    assert listed(answer) == [good.SOPInstanceUID]
    assert listed(answer, "00081198") == [other.SOPInstanceUID, cut.SOPInstanceUID]
    assert reasons(answer) == [0xA900, 0xC000]
    assert reasons(answer, "0008119A") == [0xC000, 0xC000]
    assert sorted(why(listener)) == [
        ("truncated", "C000"),
        ("unreadable", "C000"),
        ("unreadable", "C000"),
        ("wrong_study", "A900"),
    ]
    kept = [row.quarantine_key for row in listener.refusals() if row.reason == "unreadable"]
    assert {(listener.root / key).read_bytes() for key in kept} == {rubbish, no_meta}
    assert listener.staged() == []


def test_nothing_is_kept(listener: Listener, url: str) -> None:
    answer = post(f"{url}/{new_uid()}", body_of(part10(image())))
    assert (answer.status_code, reasons(answer)) == (409, [0xA900])
    assert listener.rows(instances) == []


def test_too_large(listener: Listener) -> None:
    big, small = image(size=400), image()
    with stow_door(listener, maximum_object_bytes=100_000, maximum_request_bytes=400_000) as url:
        answer = post(url, body_of(part10(big)))
        assert (answer.status_code, reasons(answer)) == (413, [0xA701])
        assert post(url, body_of(part10(big), part10(small))).status_code == 202
        many = body_of(*[part10(image()) for _ in range(100)])
        assert post(url, many).status_code == 413  # by its Content-Length
        assert len(listener.rows(instances)) == 1
        chunked = post(url, pieces(many, 50_000))
        assert chunked.status_code == 413
        assert len(listed(chunked)) == len(listener.rows(instances)) - 1
    assert ("request_too_large", "HTTP 413") in why(listener)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/dicom"}, 415),
        ({"content-type": "multipart/related; type=application/dicom"}, 415),
        ({"content-type": f"{CONTENT_TYPE}{'b' * 200}"}, 415),
        ({"content-type": CONTENT_TYPE.replace("application/dicom", "application/dicom+json")}, 415),
        ({"content-type": CONTENT_TYPE.replace("related", "form-data")}, 415),
        ({"content-encoding": "gzip"}, 415),
        ({"accept": "application/dicom+xml"}, 406),
        ({"content-type": CONTENT_TYPE.replace('"application/dicom"', "application/dicom")}, 200),
        ({"content-type": CONTENT_TYPE.replace('type="application/dicom"; ', "")}, 200),
        ({"accept": "text/html, application/dicom+json;q=0.9"}, 200),
    ],
)
def test_headers(listener: Listener, url: str, headers: dict[str, str], status: int) -> None:
    answer = post(url, body_of(part10(image())), **headers)
    assert answer.status_code == status
    assert len(listener.rows(instances)) == (status == 200)
    assert [answer for _, answer in why(listener)] == ([] if status == 200 else [f"HTTP {status}"])


def test_only_post_and_only_studies(url: str) -> None:
    assert httpx.get(url).status_code == 405
    assert post(f"{url}/1.2/series", b"").status_code == 404
    assert post(f"{url}/1.02", body_of(part10(image()))).status_code == 400


def test_a_token(listener: Listener) -> None:
    with stow_door(listener, token="a-token-of-the-test") as url:
        body = body_of(part10(image()))
        for wrong in ({}, {"authorization": "Bearer x"}, {"authorization": "Basic a-token-of-the-test"}):
            answer = post(url, body, **wrong)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert post(url, body, authorization="Bearer a-token-of-the-test").status_code == 200
    assert {reason for reason, _ in why(listener)} == {"token_missing_or_wrong"}


@pytest.mark.parametrize(
    ("calling", "network", "status"),
    [("STOW-RS", "127.0.0.0/8", 200), ("PACS", "127.0.0.0/8", 403), ("STOW-RS", "10.0.0.0/8", 403)],
)
def test_the_allow_list(listener: Listener, calling: str, network: str, status: int) -> None:
    rule = AccessRule("ECHO", calling, (ipaddress.ip_network(network),))
    with stow_door(listener, access=[rule]) as url:
        assert post(url, body_of(part10(image()))).status_code == status


def test_too_many_requests(listener: Listener) -> None:
    with stow_door(listener, maximum_requests=2, maximum_requests_per_peer=1) as url:
        go, begun = threading.Event(), threading.Event()

        def slowly() -> Iterator[bytes]:
            body = body_of(part10(image()))
            yield body[:500]
            begun.set()
            assert go.wait(60)
            yield body[500:]

        answers: list[int] = []
        first = threading.Thread(target=lambda: answers.append(post(url, slowly()).status_code))
        first.start()
        assert begun.wait(60)

        def refused() -> bool:
            answer = post(url, body_of(part10(image())))
            return answer.status_code == 503 and int(answer.headers["retry-after"]) > 0

        wait_for(refused)
        go.set()
        first.join(60)
        assert answers == [200]
        assert post(url, body_of(part10(image()))).status_code == 200
    assert ("too_many_requests_of_peer", "HTTP 503") in why(listener)


def test_low_space(tmp_path: Path) -> None:
    free = [10]
    watermark = Watermark(100, 200)
    with (
        listening(f"sqlite:///{tmp_path}/l", tmp_path / "o", watermark=watermark, free=lambda: free[0]) as listener,
        stow_door(listener) as url,
    ):
        answer = post(url, body_of(part10(image())))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
        assert why(listener) == [("low_space", "HTTP 503")]
        free[0] = 500
        assert post(url, body_of(part10(image()))).status_code == 200


def test_the_database_goes_away(listener: Listener, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [image() for _ in range(5)]
    record = SqlLedger.record
    calls = []

    def failing(self: SqlLedger, *arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 3:
            raise TransientError("away")
        return record(self, *arguments)

    monkeypatch.setattr(SqlLedger, "record", failing)
    body = body_of(*[part10(ds) for ds in images])
    answer = post(url, body)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
    assert listed(answer) == [ds.SOPInstanceUID for ds in images[:2]]
    assert (listed(answer, "00081198"), reasons(answer)) == ([images[2].SOPInstanceUID], [0xA700])
    assert len(calls) == 3  # the rest was not tried
    assert post(url, body).status_code == 200
    assert len(listener.rows(instances)) == 5


@pytest.mark.parametrize("cut", [0, 40, 200, 700, 3000, 4400])
def test_a_body_that_ends_too_early(listener: Listener, url: str, cut: int) -> None:
    body = body_of(part10(image()))
    answer = post(url, body[:cut])
    assert (answer.status_code, why(listener)) == (400, [("body_malformed", "HTTP 400")])
    assert listener.rows(instances) == []
    assert listener.staged() == []


@pytest.mark.parametrize("goes", [True, False])
def test_a_sender_that_goes_or_falls_silent_leaves_nothing_half(listener: Listener, goes: bool) -> None:
    first, second = image(size=1500), image(size=1500)
    body = body_of(part10(first), part10(second))
    with (
        stow_door(listener, silence_seconds=90 if goes else 3) as url,
        socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0)) as sender,
    ):
        sender.settimeout(60)
        head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Type: {CONTENT_TYPE}\r\n"
        sender.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: len(body) * 4 // 5])
        wait_for(lambda: listener.rows(instances))
        if goes:
            wait_for(listener.staged)
            sender.close()
        else:
            assert sender.recv(100).startswith(b"HTTP/1.1 408")
        wait_for(lambda: not listener.staged())
        expected = ("request_broken", "HTTP 400") if goes else ("idle_timeout", "HTTP 408")
        wait_until_equal(lambda: why(listener), [expected])
    row = listener.instance(first.SOPInstanceUID)  # the whole one is kept, though nobody was told
    assert listener.data_set(row.object_key) == encoded(first)
    assert len(listener.rows(instances)) == 1
    assert listener.study(first.StudyInstanceUID).released_at is None
    (event,) = [event for event in listener.events() if event.type == DICOM_REFUSED]
    assert event.data["status"] == expected[1]


@pytest.mark.parametrize("sent", [b"", b"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nA"])
def test_a_head_that_does_not_come_ends_the_connection(listener: Listener, sent: bytes) -> None:
    with (
        stow_door(listener, head_seconds=0.3) as url,
        socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0)) as slow,
    ):
        slow.settimeout(60)
        with contextlib.suppress(ConnectionError):  # it may be over even before the first bytes
            slow.sendall(sent)
            assert slow.recv(100) == b""
        wait_until_equal(lambda: why(listener), [("no_association_request", None)])


def test_too_many_connections(listener: Listener) -> None:
    with stow_door(listener, maximum_connections=2) as url:
        with socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0)):
            assert post(url, body_of(part10(image()))).status_code == 503
        wait_until_equal(lambda: why(listener), [("too_many_connections", None)])
        wait_for(lambda: post(url, body_of(part10(image()))).status_code == 200)


def test_expect_continue_is_refused_before_the_body(listener: Listener) -> None:
    with (
        stow_door(listener, token="a-token-of-the-test") as url,
        socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0)) as sender,
    ):
        sender.settimeout(60)
        sender.sendall(
            f"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Type: {CONTENT_TYPE}\r\n"
            "Content-Length: 5000000000\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert sender.recv(12) == b"HTTP/1.1 401"


def test_parallel_requests_and_associations_make_one_study(listener: Listener, url: str) -> None:
    study = new_uid()
    results: list[object] = []

    def stow() -> None:
        results.append(post(url, body_of(*[part10(image(study)) for _ in range(5)])).status_code == 200)

    def store() -> None:
        with Sender(listener.port) as sender:
            results.append(all(sender.send(image(study)) == 0 for _ in range(5)))

    threads = [threading.Thread(target=work) for work in (stow, store, stow, store)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert results == [True] * 4
    listener.step_until(1)
    assert listener.study(study).instance_count == 20
    assert {row.sop_class_uid for row in listener.rows(instances)} == {DX}
