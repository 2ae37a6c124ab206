"""A TCP forwarder that a test can cut, to play an outage of a server that others use at the same time."""

from __future__ import annotations

import contextlib
import socket
import threading

from servers.ports import free_port


class Forwarder:
    """Listens on `port` while it is up and passes bytes on to `target`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener: socket.socket | None = None
        self._pairs: list[socket.socket] = []
        self.port = free_port()

    def up(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def down(self) -> None:
        """Refuse new connections and break those that stand."""
        if self._listener is not None:
            # Closing alone would leave the thread in accept(), and with it the port open.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        while self._pairs:
            with contextlib.suppress(OSError):
                self._pairs[-1].shutdown(socket.SHUT_RDWR)
            self._pairs.pop().close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._pairs += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
