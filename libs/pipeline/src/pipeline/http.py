"""The HTTP side of every service: `/healthz`, `/readyz`, `/metrics`, and the service's own routes beside them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping, Sequence

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

_IDLE_S = 60
"""After which an idle connection is closed: later than our clients do (5 s), or one would use it just then."""

CLIENT_IDLE_S = 4.0
"""After which a client gives up an idle connection to somebody else's server: before the server does (some after 5 s).

A connection that both end at once fails the request that is just sent.
"""

Check = Callable[[], None]
"""Raises while the thing it asks about is not ready."""


def health_routes(checks: Mapping[str, Check], ready: threading.Event) -> list[BaseRoute]:
    """Routes that answer for the process; `checks` are named and run on each `/readyz`."""

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    def run_checks() -> dict[str, str]:
        states = {}
        for name, check in checks.items():
            try:
                check()
                states[name] = "ok"
            except Exception as error:  # noqa: BLE001  # any failure means not ready; its type is the answer
                states[name] = f"failed: {type(error).__name__}"
        return states

    async def readyz(_request: Request) -> Response:
        states = await run_in_threadpool(run_checks)
        good = ready.is_set() and all(state == "ok" for state in states.values())
        return JSONResponse(
            {"status": "ready" if good else "not ready", "checks": states}, status_code=200 if good else 503
        )

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]


def service_app(checks: Mapping[str, Check], ready: threading.Event, routes: Sequence[BaseRoute] = ()) -> Starlette:
    """A small ASGI application with the health routes first and the service's own behind them."""
    return Starlette(routes=[*health_routes(checks, ready), *routes])


def from_another_site(headers: Headers) -> bool:
    """Whether a browser sends the request for a page of another site, which may make it send a form to any address.

    Over TLS and to the same machine browsers say so in Sec-Fetch-Site, else only in Origin, which is to name the host
    that was asked: Host, or X-Forwarded-Host behind a proxy. Programs send neither.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site not in ("none", "same-origin")
    if origin is None:
        return False
    asked = [headers.get("host", ""), *",".join(headers.getlist("x-forwarded-host")).split(",")]
    named = origin.partition("://")[2]  # nothing in `null`, which stands for an origin that is not told
    return not named or named.lower() not in {host.strip().lower() for host in asked}


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port in use is known before anything starts. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(256)
    except OSError:
        sock.close()
        raise
    return sock


class HttpServer:
    """uvicorn in a thread, on a socket that was bound before."""

    def __init__(self, app: ASGIApp, sock: socket.socket) -> None:
        self._sock = sock
        self.port: int = sock.getsockname()[1]
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            loop="asyncio",
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=3,
            ws="none",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def _run(self) -> None:
        # Signals belong to the service runner; uvicorn takes them only in the main thread, which this is not.
        self._server.run(sockets=[self._sock])

    def start(self) -> None:
        """Serve from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Finish running requests (at most 3 s) and close the socket."""
        self._server.should_exit = True
        self._thread.join(timeout=10)
        with contextlib.suppress(OSError):
            self._sock.close()
