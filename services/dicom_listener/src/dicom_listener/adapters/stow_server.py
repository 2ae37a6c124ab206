"""The HTTP(S) port of STOW-RS: uvicorn in a thread, with a time limit for the head of a request.

Connections that end before there is a request, of which uvicorn and asyncio tell nobody, are told like those of the
DICOM port.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
import threading
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from dicom_listener.adapters.transport import TurnAway, tls_words
from dicom_listener.domain.access import TurnedAway

_WHERE = "at the STOW-RS port"


class _TimelyProtocol(H11Protocol):
    """Ends a connection whose request line and headers do not come in time; uvicorn itself would wait for ever."""

    head_seconds: float
    turn_away: TurnAway
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self._told(TurnedAway.TOO_MANY_CONNECTIONS)  # uvicorn answers 503
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def _await_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.head_seconds, self._close_late)

    def _close_late(self) -> None:
        self._told(TurnedAway.NO_REQUEST)
        self.transport.close()

    def _told(self, reason: TurnedAway) -> None:
        self.turn_away(reason, self.client[0] if self.client is not None else "", _WHERE)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Loop(asyncio.SelectorEventLoop):
    """Tells of TLS handshakes that failed; asyncio keeps them to itself unless it is debugged."""

    def __init__(self, turn_away: TurnAway) -> None:
        super().__init__()
        self._turn_away = turn_away

    def _make_ssl_transport(self, rawsock: socket.socket, *arguments: Any, **named: Any) -> Any:
        with contextlib.suppress(OSError):  # it is gone already
            address = str(rawsock.getpeername()[0])
            named["waiter"].add_done_callback(lambda shaken: self._after_handshake(shaken, address))
        return super()._make_ssl_transport(rawsock, *arguments, **named)  # type: ignore[misc]  # asyncio's own

    def _after_handshake(self, shaken: asyncio.Future[None], address: str) -> None:
        error = None if shaken.cancelled() else shaken.exception()
        if isinstance(error, OSError):
            self._turn_away(TurnedAway.TLS_FAILED, address, f"{_WHERE}: {tls_words(error)}")


class StowServer:
    """Serves on a socket that was bound before."""

    def __init__(
        self,
        app: ASGIApp,
        sock: socket.socket,
        tls: ssl.SSLContext | None,
        turn_away: TurnAway,
        *,
        drain_seconds: float,
        head_seconds: float,
        maximum_connections: int,
    ) -> None:
        self.port: int = sock.getsockname()[1]
        self._sock = sock
        more: dict[str, Any] = {}
        if tls is not None:
            more["ssl_context_factory"] = lambda _config, _default: tls
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=type(
                    "_Protocol",
                    (_TimelyProtocol,),
                    {"head_seconds": head_seconds, "turn_away": staticmethod(turn_away)},
                ),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # the address on the allow-list is the one that the connection comes from
                server_header=False,
                limit_concurrency=maximum_connections,
                timeout_graceful_shutdown=math.ceil(drain_seconds),
                **more,
            )
        )
        self._drain_seconds = drain_seconds
        self._turn_away = turn_away
        self._thread = threading.Thread(target=self._serve, name="stow-rs", daemon=True)

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: _Loop(self._turn_away)) as runner:
            runner.run(self._server.serve(sockets=[self._sock]))

    def start(self) -> None:
        """Take requests from now on."""
        self._thread.start()

    def check(self) -> None:
        """Raise unless the port takes requests."""
        if self._server.should_exit or not self._thread.is_alive():
            raise RuntimeError("the STOW-RS port does not take requests")

    def close(self) -> None:
        """Take no new requests; running ones have the drain time to finish."""
        self._server.should_exit = True

    def join(self) -> None:
        """After `close`: wait until they have."""
        if self._thread.ident is not None:
            self._thread.join(timeout=self._drain_seconds + 5)
        self._sock.close()
