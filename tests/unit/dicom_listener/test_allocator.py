"""What the allocator is told is what it does; a process of its own, since it cannot be told back."""

from __future__ import annotations

import subprocess
import sys

import pytest

THREADS = """
import ctypes, sys, threading
from dicom_listener.adapters.allocator import settle_allocator
if sys.argv[1] == "settled":
    settle_allocator()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(8)
def work():
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.malloc_stats()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is asked")
@pytest.mark.parametrize("how", ["settled", "left"])
def test_threads_share_two_arenas(how: str) -> None:
    done = subprocess.run([sys.executable, "-c", THREADS, how], capture_output=True, text=True, timeout=120, check=True)
    arenas = sum(line.startswith("Arena ") for line in done.stderr.splitlines())
    assert (arenas <= 2) == (how == "settled")
