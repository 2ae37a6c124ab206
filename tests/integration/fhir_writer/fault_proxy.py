"""A real HTTP proxy between the writer and a FHIR server that does, on demand, what servers do in bad hours."""

from __future__ import annotations

import http.client
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Fault:
    """What to do with one request."""

    status: int | None = None
    """Answer this instead of forwarding."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    forward: bool = False
    """Forward, and let the server finish, but lose its answer."""
    meanwhile: Callable[[], None] | None = None
    """Called after the server has finished and before its answer is lost."""


class FaultProxy:
    """Listens on loopback; `transactions` and `reads` are the faults of the next POSTs to the base and of the GETs."""

    def __init__(self, target: str, port: int = 0) -> None:
        parts = urlsplit(target)
        self.transactions: deque[Fault] = deque()
        self.reads: deque[Fault] = deque()
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.seen.append((self.command, self.path, dict(self.headers)))
                faults = proxy.transactions if self.command == "POST" else proxy.reads
                fault = faults.popleft() if faults else None
                if fault is not None and fault.status is not None:
                    self._answer(fault.status, fault.headers, fault.body)
                    return
                if fault is None or fault.forward:
                    status, headers, answer = self._forwarded(parts.hostname or "", parts.port or 80, body)
                    if fault is None:
                        self._answer(status, headers, answer)
                        return
                if fault.meanwhile is not None:
                    fault.meanwhile()
                self.close_connection = True  # no answer at all: the client sees the connection close

            def _forwarded(self, host: str, port: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
                connection = http.client.HTTPConnection(host, port, timeout=120)
                dropped = ("host", "connection", "accept-encoding")
                kept = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
                connection.request(self.command, self.path, body=body or None, headers=kept)
                response = connection.getresponse()
                answer = response.read()
                headers = {
                    k: v
                    for k, v in response.getheaders()
                    if k.lower() in ("content-type", "etag", "location", "retry-after")
                }
                connection.close()
                return response.status, headers, answer

            def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = _serve

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: the test says what it saw."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}{parts.path}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
