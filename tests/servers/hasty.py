"""A server that ends a kept connection just as it is used again, as every server does after some idle seconds."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Hasty(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # which keeps connections
    answered = False

    def _serve(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.answered:
            self.close_connection = True
            return
        self.answered = True
        body = json.dumps({"path": self.path}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _serve

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def hasty_server() -> Iterator[str]:
    """Its base address; it answers the first request of each connection."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hasty)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
