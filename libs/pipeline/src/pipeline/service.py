"""How every service lives: start its loops, say it is ready, drain on SIGTERM, exit 0; die loudly when a loop dies."""

from __future__ import annotations

import _thread
import contextlib
import errno
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from pipeline.database import is_transient, is_wrong_address, why_unreachable
from pipeline.errors import reason_of
from pipeline.http import Check, HttpServer, bind, service_app
from pipeline.settings import CommonSettings, masked
from pipeline.telemetry import configure_logging

log = logging.getLogger(__name__)

Loop = Callable[[threading.Event], None]
"""Runs until the event is set."""

_DRAIN_S = 60.0
_LOOK_S = 1.0
_T = TypeVar("_T")


class ServiceRunner:
    """The life of one service process.

    Build it first in `app.py`, in the main thread: it configures logging, takes the signals and binds the HTTP port.
    """

    def __init__(self, name: str, settings: CommonSettings) -> None:
        self.name = name
        self.stop = threading.Event()
        self.ready = threading.Event()
        self._loops: list[tuple[str, Loop]] = []
        self._on_stop: list[Callable[[], None]] = []
        self._failed = False
        configure_logging(name, settings.log_level, log_identifiers=settings.log_identifiers)
        log.info("starting", extra={"settings": masked(settings)})
        self._socket = claim_port(settings.http_host, settings.http_port, "ECHO_HTTP_PORT")
        on_end_signals(self.stop.set)

    def prepare(self, setting: str, step: Callable[[], _T]) -> _T:
        """Do a step of the start that needs a server; `setting` has its address. What is transient is waited for.

        Meanwhile `/healthz` answers and `/readyz` says no. SIGTERM or SIGINT ends the process with status 0, an address
        or login that no waiting puts right with status 2.
        """
        failures = 0
        with contextlib.ExitStack() as waiting:
            while not self.stop.is_set():
                try:
                    return step()
                except Exception as error:
                    reason, wrong = why_unreachable(error) or reason_of(error), is_wrong_address(error)
                    if not wrong and not is_transient(error):
                        raise
                if wrong:
                    sys.stderr.write(f"wrong setting {setting}: {reason}\n")
                    raise SystemExit(2)
                if not failures:
                    server = HttpServer(service_app({}, self.ready), self._socket.dup())
                    server.start()
                    waiting.callback(server.stop)
                failures += 1
                log.warning("start waits", extra={"setting": setting, "reason": reason, "failures": failures})
                self.stop.wait(min(5.0, 0.1 * 2**failures))
        for action in reversed(self._on_stop):
            action()
        log.info("stopped", extra={"failed": False})
        raise SystemExit(0)

    def add_loop(self, name: str, loop: Loop) -> None:
        """A thread of the service; an exception that leaves it ends the process with status 1."""
        self._loops.append((name, loop))

    def on_stop(self, action: Callable[[], None]) -> None:
        """Run when stopping, in reverse order of registration, after the loops have ended."""
        self._on_stop.append(action)

    def run(
        self,
        checks: Mapping[str, Check],
        routes: Sequence[BaseRoute] = (),
        *,
        app: ASGIApp | None = None,
        on_ready: Callable[[], None] | None = None,
        before_join: Callable[[], None] | None = None,
        ready_fields: Mapping[str, object] | None = None,
    ) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit status.

        `app` replaces the default application and must have the health routes itself. `before_join` runs when
        stopping begins, before the loops are waited for (close a listening socket there). `ready_fields` are added to
        the log line "ready", beside `http_port`.
        """
        server = HttpServer(app or service_app(checks, self.ready, routes), self._socket)
        server.start()
        threads = [
            threading.Thread(target=self._guard, args=(name, loop), name=name, daemon=True)
            for name, loop in self._loops
        ]
        for thread in threads:
            thread.start()
        if on_ready is not None:
            on_ready()
        self.ready.set()
        log.info("ready", extra={"http_port": server.port, **(ready_fields or {})})
        # Not without end: a signal that another thread was given is handled when this one wakes.
        while not self.stop.wait(_LOOK_S):
            pass
        log.info("stopping")
        self.ready.clear()
        if before_join is not None:
            before_join()
        deadline = time.monotonic() + _DRAIN_S
        for thread in threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.error("loop did not end", extra={"loop": thread.name})
                self._failed = True
        for action in reversed(self._on_stop):
            action()
        server.stop()
        log.info("stopped", extra={"failed": self._failed})
        return 1 if self._failed else 0

    def _guard(self, name: str, loop: Loop) -> None:
        try:
            loop(self.stop)
            if not self.stop.is_set():
                raise RuntimeError(f"loop {name} ended by itself")
        except BaseException:  # SystemExit, too, would end the thread without a word
            log.exception("loop died", extra={"loop": name})
            self._failed = True
            self.stop.set()


def on_end_signals(action: Callable[[], object]) -> None:
    """Let each SIGTERM and SIGINT do `action`, in a thread of its own. Call it in the main thread.

    Python runs a handler in the main thread between any two steps, also while that thread holds the lock of the event
    it is about to wait for: `Event.set` called there would never return.
    """
    for signum in (signal.SIGTERM, signal.SIGINT):
        # threading.Thread would take locks that the main thread may hold, too
        signal.signal(signum, lambda *_: _thread.start_new_thread(action, ()))


def claim_port(host: str, port: int, setting: str) -> socket.socket:
    """Bind now; a port in use or not allowed ends the process with status 2 and a message that names the setting."""
    try:
        return bind(host, port)
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be bound ({error.strerror})"
        sys.stderr.write(
            f"wrong setting {setting}: port {port} on {host} {why}; set another one or stop what uses it\n"
        )
        raise SystemExit(2) from None
