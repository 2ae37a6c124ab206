"""Have the system write to the disk what it would keep in memory until somebody asks for it."""

from __future__ import annotations

import ctypes

_WRITE = 2  # SYNC_FILE_RANGE_WRITE of sync_file_range(2)
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux has it, others need not
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def begin_writing(file: int, offset: int, count: int) -> None:
    """Begin, and do not wait. Promises nothing, and an error is nobody's: the sync that follows tells it."""
    if _sync_file_range is not None:
        _sync_file_range(file, offset, count, _WRITE)
