"""An object on its way in: written to the staging folder as it arrives, hashed on the way, never decoded."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

from dicom_listener.adapters.writeback import begin_writing
from dicom_listener.domain.header import ObjectHeader, read_header
from dicom_listener.domain.part10 import part10_head
from dicom_listener.domain.refusals import Reason, Refused
from pipeline.store import ObjectStore

_PREFIX = "dicom-"
_BEGIN_WRITING = 2 * 2**20  # bytes; of a large object most lies on the disk before the sync that its answer waits for
_MOST_PIECES = 256  # of one write; the system takes up to 1,024


def clear_leftovers(staging: Path) -> int:
    """Remove what an earlier process left half written; nothing in there was ever acknowledged."""
    leftovers = list(staging.glob(f"{_PREFIX}*"))
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


class IncomingFile:
    """Implements `ports.StagedFile`.

    A refusal known from the start, or an error while writing, lets the rest of the bytes pass by unwritten: the
    association stays usable, and the sender gets a status for the object instead of a broken connection.
    """

    def __init__(
        self,
        store: ObjectStore,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        refused: Refused | None,
        *,
        maximum_bytes: int,
    ) -> None:
        self.sop_class_uid = sop_class_uid
        self.sop_instance_uid = sop_instance_uid
        self.transfer_syntax_uid = transfer_syntax_uid
        self.size_bytes = 0
        self.data_set_offset = 0
        self._maximum = maximum_bytes
        self._store = store
        self._refused = refused
        self._hash = hashlib.sha256()
        self._file: int | None = None  # descriptor
        self._is_there = False
        self._begun = 0  # bytes that the system was told to begin writing to the disk
        self._gathered: list[bytes | memoryview] = []
        # The association may be ended by another thread: what this one writes just then must not go into the file that
        # is opened next, which has the same descriptor.
        self._in_use = threading.RLock()
        self.path = store.staging_dir() / f"{_PREFIX}{uuid.uuid4().hex}.part"
        if refused is None:
            self._is_there = True
            try:
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except OSError as error:
                self._fail(error)
            else:
                self.gather(self._head())
                self.data_set_offset = self.size_bytes

    def _head(self) -> bytes:
        return part10_head(self.sop_class_uid, self.sop_instance_uid, self.transfer_syntax_uid)

    def write(self, data: bytes | memoryview) -> None:
        """Append; an error is remembered for `finish` and not raised."""
        self.gather(data)
        self.flush()

    def gather(self, data: bytes | memoryview) -> None:
        """Append what stays as it is until `flush`, so that many fragments are one write."""
        if self._file is None:
            return
        if self.size_bytes + len(data) > self._maximum:
            self._refused = Refused(Reason.OBJECT_TOO_LARGE)
            self.discard()
            return
        self._gathered.append(data)
        self.size_bytes += len(data)
        if len(self._gathered) >= _MOST_PIECES:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered; an error is remembered for `finish` and not raised."""
        pieces, self._gathered = self._gathered, []
        with self._in_use:
            if self._file is None:
                return
            try:
                for piece in pieces:
                    self._hash.update(piece)
                _write_all(self._file, pieces)
                if self.size_bytes - self._begun >= _BEGIN_WRITING:
                    begin_writing(self._file, self._begun, self.size_bytes - self._begun)
                    self._begun = self.size_bytes
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        self._refused = Refused(Reason.STORE_UNAVAILABLE, "no space left" if full else f"error {error.errno}")
        self.discard()

    def finish(self) -> str:
        """Close and return the SHA-256 of the file; raises `Refused` if there is none."""
        self.flush()
        try:
            self._close()
        except OSError as error:  # some file systems tell only now that the disk is full
            self._fail(error)
        if self._refused is not None:
            raise self._refused
        return self._hash.hexdigest()

    def header(self) -> ObjectHeader:
        """Index the data set through a memory map, of which only the header's pages are touched."""
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return read_header(data, self.data_set_offset, self.transfer_syntax_uid)

    def put(self, key: str) -> None:
        """Move into the store. Whatever goes wrong there, the sender should try again later."""
        try:
            self._store.put_file(self.path, key)
        except Exception as error:
            raise Refused(Reason.STORE_UNAVAILABLE, type(error).__name__) from error
        self._is_there = False

    def discard(self) -> None:
        """Close and remove what is left."""
        self._gathered.clear()
        with contextlib.suppress(OSError):  # the file goes anyway
            self._close()
        if self._is_there:
            self._is_there = False
            self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        with self._in_use:
            if self._file is not None:
                file, self._file = self._file, None
                os.close(file)


def _write_all(file: int, pieces: Sequence[bytes | memoryview]) -> None:
    """One call, unless the system takes less at once, as it does when the disk is nearly full."""
    left = sum(len(piece) for piece in pieces) - os.writev(file, pieces)
    while left:
        rest = b"".join(pieces)[-left:]
        left -= os.write(file, rest)


class UnreadableFile(IncomingFile):
    """A file without usable file meta information: kept as it came, for quarantine."""

    def __init__(self, store: ObjectStore, refused: Refused | None, why: Refused, *, maximum_bytes: int) -> None:
        super().__init__(store, "", "", "", refused, maximum_bytes=maximum_bytes)
        self._why = why

    def _head(self) -> bytes:
        return b""

    def header(self) -> ObjectHeader:
        """There is none: raises `Refused`."""
        raise self._why
