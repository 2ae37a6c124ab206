"""Which keys are under way, for all processes that were forked from the one that made this: locks of the system."""

from __future__ import annotations

import fcntl
import os
import struct
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of Linux: type, whence, start, length, process (0)


class KeyLocks:
    """Implements `handlers.sweep.UnderWay`. A process that dies lets go of its keys.

    A key is a byte of a file that has no content and no name. Two keys in four thousand million share one, and then
    wait for each other without need.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("keys under way")
        weakref.finalize(self, os.close, self._file)

    @contextmanager
    def keeping(self, key: str) -> Iterator[None]:
        """The file is moved to its place and indexed inside this block; raises `OSError` (no more descriptors)."""
        with self._opened() as file:
            fcntl.fcntl(file, fcntl.F_OFD_SETLKW, _lock(fcntl.F_RDLCK, key))
            yield

    @contextmanager
    def unless_kept(self, key: str) -> Iterator[bool]:
        """True if nobody keeps the key; nobody begins to until the block ends."""
        with self._opened() as file:
            try:
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, _lock(fcntl.F_WRLCK, key))
            except BlockingIOError:
                yield False
            else:
                yield True

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Locks belong to an open file, so each holder opens it for itself; closing it lets go."""
        file = os.open(f"/proc/self/fd/{self._file}", os.O_RDWR | os.O_CLOEXEC)
        try:
            yield file
        finally:
            os.close(file)


def _lock(kind: int, key: str) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, zlib.crc32(key.encode()), 1, 0)
