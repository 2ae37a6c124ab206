"""The object store on an S3-compatible server, which runs beside the test as a process of its own."""

from __future__ import annotations

import contextlib
import io
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from contract.bus.forwarder import Forwarder
from pipeline.errors import ObjectNotFound, ObjectStoreUnavailable
from pipeline.settings import ObjectStoreSettings
from pipeline.store import ObjectStore, make_object_store
from servers.ports import free_port


@pytest.fixture(scope="module")
def server_port() -> Iterator[int]:
    """The port of a server with the bucket `bucket`, for all tests of this file."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                httpx.put(f"http://127.0.0.1:{port}/bucket", timeout=60).raise_for_status()
                break
            except httpx.TransportError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def server(server_port: int) -> Iterator[Forwarder]:
    """The way to the server, which a test can cut."""
    forwarder = Forwarder(("127.0.0.1", server_port))
    forwarder.up()
    yield forwarder
    forwarder.down()


def store_on(server: Forwarder, bucket: str = "bucket/some/prefix") -> ObjectStore:
    return make_object_store(
        ObjectStoreSettings(
            object_store_url=f"s3://{bucket}",
            s3_endpoint_url=f"http://127.0.0.1:{server.port}",
            s3_access_key="test",
            s3_secret_key="test",
        )
    )


def test_the_whole_life_of_objects(server: Forwarder) -> None:
    store = store_on(server)
    store.ping()
    store.put_bytes(b"small", "manifests/a.json")
    path = store.staging_dir() / "staged"
    path.write_bytes(bytes(range(256)) * 4096)
    store.put_file(path, "objects/aa/b.dcm")
    assert not path.exists()
    with store.open("objects/aa/b.dcm") as stream:
        stream.seek(256 * 4095)
        assert stream.read() == bytes(range(256))
    assert list(store.keys("objects")) == ["objects/aa/b.dcm"]
    assert store.exists("manifests/a.json")
    assert not store.exists("manifests/b.json")
    with pytest.raises(ObjectNotFound):
        store.open("manifests/b.json")
    store.delete("manifests/a.json")
    store.delete("manifests/a.json")
    assert not store.exists("manifests/a.json")
    assert store.free_bytes() is None
    assert list(store_on(server).keys("objects")) == ["objects/aa/b.dcm"], "another process sees the same"


def test_a_missing_bucket_and_a_dead_server_are_unavailable(server: Forwarder) -> None:
    nowhere = store_on(server, "no-such-bucket")
    with pytest.raises(ObjectStoreUnavailable):
        nowhere.ping()
    with pytest.raises(ObjectStoreUnavailable):
        nowhere.put_bytes(b"x", "a")
    store = store_on(server)
    store.put_bytes(b"x", "a")
    path = store.staging_dir() / "staged"
    path.write_bytes(b"x")
    server.down()
    for attempt in (
        store.ping,
        lambda: store.put_bytes(b"x", "a"),
        lambda: store.put_file(path, "b"),
        lambda: store.open("a"),
        lambda: store.exists("a"),
    ):
        with pytest.raises(ObjectStoreUnavailable):
            attempt()
    assert path.exists(), "what was not stored is still there"
    server.up()
    store.put_file(path, "b")
    assert store.exists("b")


class ShortForwarder(Forwarder):
    """Breaks every connection in the middle of a large answer."""

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            left = 100_000
            while left and (data := source.recv(min(left, 65536))):
                sink.sendall(data)
                left -= len(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def short(server_port: int) -> Iterator[Forwarder]:
    forwarder = ShortForwarder(("127.0.0.1", server_port))
    forwarder.up()
    yield forwarder
    forwarder.down()


def test_a_server_that_is_gone_between_opening_and_reading_is_unavailable(server: Forwarder) -> None:
    store = store_on(server)
    store.put_bytes(bytes(1_000_000), "a")
    with store.open("a") as whole, store.open("a") as part, store.open("a") as end:
        server.down()
        with pytest.raises(ObjectStoreUnavailable):
            whole.read()
        with pytest.raises(ObjectStoreUnavailable):
            part.read(10)
        end.seek(-10, io.SEEK_END)
        with pytest.raises(ObjectStoreUnavailable):
            end.read()


def test_an_answer_that_breaks_off_is_unavailable(server: Forwarder, short: Forwarder) -> None:
    store_on(server).put_bytes(bytes(1_000_000), "a")
    with store_on(short).open("a") as stream, pytest.raises(ObjectStoreUnavailable):
        stream.read()
