"""An object on its way in whose association is ended by another thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from dicom_listener.adapters import staging
from dicom_listener.adapters.staging import IncomingFile
from pipeline.store import LocalObjectStore

UIDS = ("1.2.840.10008.5.1.4.1.1.1.1", "2.25.1", "1.2.840.10008.1.2.1")


def test_what_is_written_while_the_object_is_discarded_goes_into_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    incoming = IncomingFile(LocalObjectStore(tmp_path), *UIDS, None, maximum_bytes=2**20)
    other = tmp_path / "other"
    opened: list[int] = []
    discarding = threading.Thread(target=incoming.discard)
    write_all = staging._write_all

    def write_late(file: int, pieces: Sequence[bytes | memoryview]) -> None:
        """Write, after others had time to close the file and to open the next, which takes the lowest descriptor."""
        discarding.start()
        discarding.join(0.5)
        opened.append(os.open(other, os.O_WRONLY | os.O_CREAT))
        write_all(file, pieces)

    monkeypatch.setattr(staging, "_write_all", write_late)
    incoming.write(b"of the object")
    discarding.join()
    os.close(opened[0])
    assert other.read_bytes() == b""
    assert not incoming.path.exists()
