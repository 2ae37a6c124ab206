"""The data folder's lock and sockets; the gateway's forwarding and joined metrics."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pipeline.http import HttpServer, bind
from standalone.__main__ import main
from standalone.gateway import Gateway, merge_metrics
from standalone.layout import MARKER, DataDir, DataDirInUse
from standalone.serve import _free_ports


def test_only_one_instance_per_folder(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    data.create()
    held = data.lock()
    with pytest.raises(DataDirInUse, match="is serving"):
        data.lock()
    held.close()
    data.lock().close()
    assert (data.root / MARKER).exists()
    assert data.root.stat().st_mode & 0o077 == 0


def test_a_long_path_gets_its_socket_in_a_short_one(tmp_path: Path) -> None:
    short, long = DataDir(Path("/d")), DataDir(tmp_path / ("x" * 90))
    long.create()
    assert short.socket_path() == Path("/d/run/valkey.sock")
    assert len(str(long.socket_path())) < 100
    assert long.socket_path() == long.socket_path()


@pytest.fixture
def child() -> Iterator[str]:
    async def echo(request: Request) -> Response:
        body = (await request.body()).decode()
        return JSONResponse(
            {
                "method": request.method,
                "path": request.scope["raw_path"].decode(),
                "query": request.url.query,
                "body": body,
            },
            status_code=418,
            headers={"etag": 'W/"3"'},
        )

    async def events(_request: Request) -> Response:
        async def lines() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            await asyncio.Event().wait()  # for ever: until whoever asked is gone

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def readyz(_request: Request) -> Response:
        return JSONResponse({}, status_code=503)

    async def metrics(_request: Request) -> Response:
        return Response("# HELP x_total Some.\n# TYPE x_total counter\nx_total 3.0\n", media_type="text/plain")

    app = Starlette(
        routes=[
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/stream", events),
            Route("/{path:path}", echo, methods=["GET", "PUT"]),
        ]
    )
    server = HttpServer(app, bind("127.0.0.1", 0))
    server.start()
    yield f"http://127.0.0.1:{server.port}"
    server.stop()


def test_requests_are_forwarded_as_they_are_and_a_dead_child_is_a_502(child: str) -> None:
    ready = threading.Event()
    ready.set()
    gateway = Gateway(
        {"/fhir": child, "/dead": "http://127.0.0.1:1", "/": child}, {"one": child, "two": "http://127.0.0.1:1"}, ready
    )
    gateway._health.timeout = httpx.Timeout(60)  # a service that is slow to answer is not what this is about
    server = HttpServer(gateway.app(), bind("127.0.0.1", 0))
    server.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client:
            answer = client.put("/fhir/Patient%7C1?a=b%7Cc&a=d", content="{}")
            assert answer.status_code == 418
            assert answer.headers["etag"] == 'W/"3"'
            assert answer.json() == {"method": "PUT", "path": "/fhir/Patient%7C1", "query": "a=b%7Cc&a=d", "body": "{}"}
            assert client.get("/fhirish").json()["path"] == "/fhirish"
            dead = client.get("/dead/x")
            assert dead.status_code == 502
            assert dead.headers["content-type"] == "application/problem+json"
            with client.stream("GET", "/stream") as stream:  # arrives although the child has not ended it
                assert next(stream.iter_lines()) == "data: 1"
            not_ready = client.get("/readyz")
            assert not_ready.status_code == 503
            assert not_ready.json()["checks"] == {"one": "not ready", "two": "unreachable"}
            assert 'x_total{service="one"} 3.0' in client.get("/metrics").text
    finally:
        server.stop()


def test_metrics_of_several_services_are_one_valid_exposition() -> None:
    text = '# HELP up_total Up.\n# TYPE up_total counter\nup_total{a="1"} 1.0\n'
    merged = merge_metrics({"a": text, "b": text}).decode()
    assert merged.count("# TYPE up_total counter") == 1
    assert 'up_total{a="1",service="a"} 1.0' in merged
    assert 'up_total{a="1",service="b"} 1.0' in merged


def test_no_two_services_get_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    class Socket:
        """The system gives a port that is free again to the next who asks."""

        def __enter__(self) -> Socket:
            return self

        def bind(self, _address: tuple[str, int]) -> None:
            held.append(max(held, default=4000) + 1)
            self.port = held[-1]

        def getsockname(self) -> tuple[str, int]:
            return "127.0.0.1", self.port

        def __exit__(self, *_: object) -> None:
            held.remove(self.port)

    monkeypatch.setattr("standalone.serve.socket", SimpleNamespace(socket=Socket))
    assert _free_ports(["one", "two", "three"]) == {"one": 4001, "two": 4002, "three": 4003}
    assert held == []


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["serve", "--data-dir", "x", "--dicom-port", "0"], "--dicom-port"),
        (["serve", "--data-dir", "x", "--dicom-port", "70000"], "70000"),
        (["serve", "--data-dir", "x", "--ae-title", "A" * 17], "--ae-title"),
        (["serve", "--data-dir", "x", "--quiet-seconds", "0"], "--quiet-seconds"),
        (["serve"], "--data-dir"),
    ],
)
def test_a_wrong_argument_is_named_with_status_2(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
