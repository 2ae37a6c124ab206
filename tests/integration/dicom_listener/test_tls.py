"""TLS and mutual TLS, with dcmtk's and pynetdicom's own clients; what a wrong certificate is answered."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from dicom_listener.adapters.tables import instances
from dicom_listener.domain.part10 import part10_head
from integration.dicom_listener.certificates import Papers, client, new_papers, server
from integration.dicom_listener.peers import DX, EXPLICIT, Listener, Sender, encoded, image, listening, wait_for
from integration.dicom_listener.stow_peers import CONTENT_TYPE, body_of, part10, stow_door


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return new_papers(tmp_path_factory.mktemp("tls"))


def tls_listener(tmp_path: Path, papers: Papers, *, mutual: bool) -> Iterator[Listener]:
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "o", tls=server(papers, mutual=mutual)) as running:
        yield running


@pytest.fixture
def tls(tmp_path: Path, papers: Papers) -> Iterator[Listener]:
    yield from tls_listener(tmp_path, papers, mutual=False)


@pytest.fixture
def mutual(tmp_path: Path, papers: Papers) -> Iterator[Listener]:
    yield from tls_listener(tmp_path, papers, mutual=True)


def store(listener: Listener, context: ssl.SSLContext | None, size: int = 64) -> int | None:
    """Status of a C-STORE; None if there was no association."""
    sender = Sender(listener.port, tls=context)
    if not sender.assoc.is_established:
        return None
    with sender:
        return sender.send(image(size=size))


def reasons(listener: Listener) -> list[tuple[str, str]]:
    return [(row.reason, row.text) for row in listener.refusals()]


def test_pynetdicom_over_tls(tls: Listener, papers: Papers) -> None:
    assert store(tls, client(papers), size=900) == 0
    (row,) = tls.rows(instances)
    assert row.size_bytes > 800_000
    assert reasons(tls) == []


def test_plain_text_is_refused(tls: Listener) -> None:
    assert store(tls, None) is None
    wait_for(lambda: reasons(tls))
    assert reasons(tls)[0][0] == "tls_handshake_failed"


def test_mutual_tls(mutual: Listener, papers: Papers) -> None:
    assert store(mutual, client(papers, papers.sender)) == 0
    assert reasons(mutual) == []
    assert store(mutual, client(papers)) is None
    assert store(mutual, client(papers, papers.stranger)) is None
    wait_for(lambda: len(reasons(mutual)) == 2)
    assert {reason for reason, _ in reasons(mutual)} == {"tls_handshake_failed"}
    assert any("the sender's certificate" in text for _, text in reasons(mutual))


@pytest.mark.parametrize(("version", "answered"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_versions(tls: Listener, papers: Papers, version: str, answered: bool) -> None:
    context = client(papers)
    with pytest.warns(DeprecationWarning, match="TLSv1_1") if version == "TLSv1_1" else contextlib.nullcontext():
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    context.set_ciphers("ALL:@SECLEVEL=0")
    assert (store(tls, context) == 0) is answered


def test_ciphers_without_forward_secrecy_are_refused(tls: Listener, papers: Papers) -> None:
    context = client(papers)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-GCM-SHA256:AES128-SHA:ECDHE-RSA-AES128-SHA")
    assert store(tls, context) is None


def test_a_slow_handshake_holds_up_nobody(tls: Listener, papers: Papers) -> None:
    with socket.create_connection(("127.0.0.1", tls.port)):
        assert store(tls, client(papers)) == 0


@pytest.mark.needs("dcmtk")
@pytest.mark.parametrize("with_certificate", [True, False])
def test_dcmtk_over_mutual_tls(
    mutual: Listener, papers: Papers, dcmtk: Callable[[str], str], with_certificate: bool
) -> None:
    certificate, key = papers.sender
    own = ["+tls", str(key), str(certificate)] if with_certificate else ["+tla"]
    done = subprocess.run(
        [dcmtk("echoscu"), *own, "+cf", str(papers.authority), "-aec", "ECHO", "127.0.0.1", str(mutual.port)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode == 0) is with_certificate, done.stderr
    wait_for(
        lambda: [reason for reason, _ in reasons(mutual)] == ([] if with_certificate else ["tls_handshake_failed"])
    )


@pytest.mark.parametrize("own", ["sender", "stranger", None])
def test_stow_over_mutual_tls(tmp_path: Path, papers: Papers, own: str | None) -> None:
    with (
        listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "o") as listener,
        stow_door(listener, server(papers, mutual=True)) as url,
        httpx.Client(verify=client(papers, getattr(papers, own) if own else None), timeout=60) as sender,
    ):
        try:
            answer = sender.post(url, content=body_of(part10(image())), headers={"content-type": CONTENT_TYPE})
            assert answer.status_code == 200
        except httpx.TransportError:
            assert own != "sender"
        wait_for(lambda: [reason for reason, _ in reasons(listener)] == ["tls_handshake_failed"] * (own != "sender"))
        assert len(listener.rows(instances)) == (own == "sender")


@pytest.mark.needs("dcmtk")
def test_dcmtk_stores_over_mutual_tls(
    mutual: Listener, papers: Papers, dcmtk: Callable[[str], str], tmp_path: Path
) -> None:
    certificate, key = papers.sender
    ds, path = image(size=600), tmp_path / "film.dcm"
    path.write_bytes(part10_head(DX, ds.SOPInstanceUID, EXPLICIT) + encoded(ds))
    own = ["+tls", str(key), str(certificate), "+cf", str(papers.authority)]
    command = [dcmtk("storescu"), *own, "-aec", "ECHO", "127.0.0.1", str(mutual.port), str(path)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = mutual.rows(instances)
    assert mutual.data_set(row.object_key) == encoded(ds)
    assert reasons(mutual) == []
