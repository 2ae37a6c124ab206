"""An object on its way in: written to the staging folder as it arrives, hashed on the way, never decoded."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import uuid
from pathlib import Path
from typing import IO

from dicom_listener.domain.header import ObjectHeader, read_header
from dicom_listener.domain.part10 import part10_head
from dicom_listener.domain.refusals import Reason, Refused
from pipeline.store import ObjectStore

_PREFIX = "dicom-"


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
        self._stream: IO[bytes] | None = None
        self.path = store.staging_dir() / f"{_PREFIX}{uuid.uuid4().hex}.part"
        if refused is None:
            try:
                self._stream = self.path.open("wb", buffering=1 << 16)  # larger pieces go past it
            except OSError as error:
                self._fail(error)
            else:
                self.write(self._head())
                self.data_set_offset = self.size_bytes

    def _head(self) -> bytes:
        return part10_head(self.sop_class_uid, self.sop_instance_uid, self.transfer_syntax_uid)

    def write(self, data: bytes | memoryview) -> None:
        """Append; an error is remembered for `finish` and not raised."""
        if self._stream is None:
            return
        if self.size_bytes + len(data) > self._maximum:
            self._refused = Refused(Reason.OBJECT_TOO_LARGE)
            self.discard()
            return
        try:
            self._stream.write(data)
        except OSError as error:
            self._fail(error)
            return
        self._hash.update(data)
        self.size_bytes += len(data)

    def close(self) -> None:
        """Write out the buffer; an error is remembered for `finish`."""
        if self._stream is None:
            return
        stream, self._stream = self._stream, None
        try:
            stream.close()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        self._refused = Refused(Reason.STORE_UNAVAILABLE, "no space left" if full else f"error {error.errno}")
        self.discard()

    def finish(self) -> str:
        """Close and return the SHA-256 of the file; raises `Refused` if there is none."""
        self.close()
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

    def discard(self) -> None:
        """Close and remove what is left."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            with contextlib.suppress(OSError):  # a full disk cannot take the buffer; the file goes anyway
                stream.close()
        self.path.unlink(missing_ok=True)


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
