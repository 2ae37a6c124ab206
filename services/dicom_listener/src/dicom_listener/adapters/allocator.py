"""The C library's allocator, told how a listener uses memory: many short-lived threads, each with a large buffer."""

from __future__ import annotations

import contextlib
import ctypes

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # of mallopt(3)
_LARGE = 256 * 2**10  # bytes


def settle_allocator() -> None:
    """Call before there is a second thread. Without glibc nothing happens.

    Two arenas: each keeps what the threads in it once needed. Large buffers come from the system and go back to it at
    once; by itself the allocator begins to keep them as soon as one was freed, and its arenas grow ragged.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_ARENA_MAX, 2)
        mallopt(_MMAP_THRESHOLD, _LARGE)
