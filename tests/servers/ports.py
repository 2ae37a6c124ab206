"""Ports on which nobody listens. Standard library only."""

from __future__ import annotations

import contextlib
import random
import socket

_TRIES = 500


def free_port() -> int:
    """A TCP port of the loopback on which nobody listens now.

    Below the range that outgoing connections are given (from 32768 on Linux), so that none of those takes it before
    the server does; not one of the servers' own; and seldom the same twice. Raises RuntimeError where none is free.
    """
    for _ in range(_TRIES):
        port = random.randrange(10_000, 20_000)
        with socket.socket() as probing, contextlib.suppress(OSError):
            probing.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port found")
