"""Object store port and its adapters: a local directory, or anything S3-compatible through fsspec.

Keys are relative POSIX paths made by us (hashes, UUIDs), never by a peer.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import fsspec
from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]  # publishes no types

from pipeline.errors import ObjectNotFound, ObjectStoreUnavailable
from pipeline.settings import ObjectStoreSettings

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_KEY = re.compile(r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$")


def check_key(key: str) -> str:
    """The key itself, or `ValueError` if it could leave the store or hide in it."""
    if len(key) > 512 or not _KEY.fullmatch(key):
        raise ValueError("object keys are relative paths of letters, digits, '.', '_' and '-'")
    return key


class ObjectStore(Protocol):
    """Write-once objects."""

    def staging_dir(self) -> Path:
        """A local folder for files under way; on the store's file system where it has one, so that renaming works."""
        ...

    def put_file(self, path: Path, key: str) -> None:
        """Move a staged file into place. When it returns the object is durable and whole; before, nothing is seen."""
        ...

    def put_bytes(self, data: bytes, key: str) -> None:
        """Write a small object, durable and whole when it returns."""
        ...

    def open(self, key: str) -> IO[bytes]:
        """A seekable binary stream; `ObjectNotFound` if there is none. Its reads may raise `ObjectStoreUnavailable`."""
        ...

    def exists(self, key: str) -> bool:
        """Whether the object stands."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object if it stands."""
        ...

    def keys(self, prefix: str) -> Iterator[str]:
        """All keys under a folder."""
        ...

    def free_bytes(self) -> int | None:
        """Space left, or None where there is no such thing."""
        ...

    def ping(self) -> None:
        """Raise `ObjectStoreUnavailable` unless the store answers."""
        ...


def _fsync(path: Path) -> None:
    """Of a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folders(folder: Path) -> list[Path]:
    """Make it and its parents; those that were missing, the deepest first."""
    fresh = []
    missing = folder
    while not os.path.isdir(missing):  # noqa: PTH112  # for every object received: Path.is_dir takes four times as long
        fresh.append(missing)
        missing = missing.parent
    if fresh:
        folder.mkdir(parents=True, exist_ok=True)
    return fresh


class LocalObjectStore:
    """A directory. fsync of the file, rename, fsync of the folder: what was acknowledged survives a power cut."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._staging = root / ".staging"
        self._staging.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def staging_dir(self) -> Path:
        """A hidden folder inside the root."""
        return self._staging

    def put_file(self, path: Path, key: str) -> None:
        """Sync, rename and sync the folders, new parents included."""
        target = self._path(key)
        with _local():
            _fsync(path)
            fresh = _make_folders(target.parent)
            path.replace(target)
            _fsync(target.parent)
            for folder in fresh:
                _fsync(folder.parent)

    def put_bytes(self, data: bytes, key: str) -> None:
        """Stage and move."""
        with _local(), tempfile.NamedTemporaryFile(dir=self._staging, delete=False) as file:
            staged = Path(file.name)
            try:
                file.write(data)
            except OSError:
                staged.unlink(missing_ok=True)
                raise
        try:
            self.put_file(staged, key)
        except ObjectStoreUnavailable:
            staged.unlink(missing_ok=True)
            raise

    def open(self, key: str) -> IO[bytes]:
        """The file, opened for reading."""
        path = self._path(key)
        with _local():
            try:
                return io.BufferedReader(_LocalFile(path))
            except FileNotFoundError as error:
                raise ObjectNotFound(key) from error

    def exists(self, key: str) -> bool:
        """Whether the file is there."""
        with _local():
            return self._path(key).is_file()

    def delete(self, key: str) -> None:
        """Unlink; folders stay."""
        with _local():
            self._path(key).unlink(missing_ok=True)

    def keys(self, prefix: str) -> Iterator[str]:
        """Walk the folder."""
        with _local():
            found = sorted(path for path in self._path(prefix).rglob("*") if path.is_file())
        for path in found:
            yield path.relative_to(self._root).as_posix()

    def free_bytes(self) -> int | None:
        """Bytes that this process may still write."""
        stat = os.statvfs(self._root)
        return stat.f_bavail * stat.f_frsize

    def ping(self) -> None:
        """The staging folder must be writable."""
        if not os.access(self._staging, os.W_OK):
            raise ObjectStoreUnavailable("the object store's folder is not writable")


class FsspecObjectStore:
    """Any fsspec file system whose uploads are atomic (S3 and its compatibles): durable when the upload returns."""

    def __init__(self, url: str, **options: object) -> None:
        self._fs, root = fsspec.core.url_to_fs(url, **options)
        self._root = str(root).rstrip("/")
        name = hashlib.sha256(f"{url} {options.get('client_kwargs')}".encode()).hexdigest()[:16]
        self._staging = Path(tempfile.gettempdir()) / f"echo-staging-{os.getuid()}-{name}"

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def staging_dir(self) -> Path:
        """A local temporary folder, the same after a restart, so that what a crash left in it is found."""
        self._staging.mkdir(mode=0o700, exist_ok=True)
        found = self._staging.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise ObjectStoreUnavailable("the staging folder belongs to somebody else")
        return self._staging

    def put_file(self, path: Path, key: str) -> None:
        """Upload, then drop the staged file."""
        with _remote():
            self._fs.put_file(str(path), self._path(key))
        path.unlink()

    def put_bytes(self, data: bytes, key: str) -> None:
        """Upload in one piece."""
        with _remote():
            self._fs.pipe_file(self._path(key), data)

    def open(self, key: str) -> IO[bytes]:
        """A buffered remote file."""
        try:
            with _remote():
                return io.BufferedReader(_RemoteFile(self._fs.open(self._path(key), "rb")))
        except ObjectStoreUnavailable as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise ObjectNotFound(key) from error
            raise

    def exists(self, key: str) -> bool:
        """Ask the store, not fsspec's listing cache."""
        with _remote():
            self._fs.invalidate_cache()
            return bool(self._fs.exists(self._path(key)))

    def delete(self, key: str) -> None:
        """Remove the object."""
        if self.exists(key):
            with _remote():
                self._fs.rm_file(self._path(key))

    def keys(self, prefix: str) -> Iterator[str]:
        """List recursively."""
        with _remote():
            self._fs.invalidate_cache()
            found = sorted(self._fs.find(self._path(prefix)))
        for path in found:
            yield str(path)[len(self._root) + 1 :]

    def free_bytes(self) -> int | None:
        """Object services have no such figure."""
        return None

    def ping(self) -> None:
        """List the bucket; a prefix without objects is as good as one with them."""
        with _remote():
            self._fs.invalidate_cache()
            self._fs.ls(self._root.partition("/")[0])


@contextlib.contextmanager
def _local() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unavailable(error) from error


class _LocalFile(io.FileIO):
    """A file whose medium may fail under a read."""

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        with _local():
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with _local():
            return super().readall()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        with _local():
            return super().seek(offset, whence)


class _RemoteFile(io.RawIOBase):
    """A remote file, which fetches what is read when it is read."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        with _remote():
            return int(self._file.readinto(buffer))

    def readall(self) -> bytes:
        with _remote():
            return bytes(self._file.read())

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


@functools.cache
def _remote_errors() -> tuple[type[Exception], ...]:
    # s3fs gives up with the last of the errors after which it tries again; some are of the HTTP client.
    from s3fs.core import S3_RETRYABLE_ERRORS  # here, because it is slow to import

    return (OSError, BotoCoreError, *S3_RETRYABLE_ERRORS)


@contextlib.contextmanager
def _remote() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not isinstance(error, _remote_errors()):
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _unavailable(error) from error
        # Texts of the client quote keys and addresses; the type says what to look for.
        raise ObjectStoreUnavailable(f"the object service fails: {type(error).__name__}") from error


def _unavailable(error: OSError) -> ObjectStoreUnavailable:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return ObjectStoreUnavailable("no space left" if full else f"input/output error {error.errno}")


def make_object_store(settings: ObjectStoreSettings) -> ObjectStore:
    """The adapter that `object_store_url` asks for."""
    url = settings.object_store_url
    if url.startswith("file://"):
        try:
            return LocalObjectStore(Path(url.removeprefix("file://")))
        except OSError as error:
            sys.stderr.write(f"wrong setting ECHO_OBJECT_STORE_URL: is {url!r}; {error.strerror}\n")
            raise SystemExit(2) from None
    return FsspecObjectStore(
        url,
        key=settings.s3_access_key.get_secret_value() if settings.s3_access_key else None,
        secret=settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else None,
        client_kwargs={"endpoint_url": settings.s3_endpoint_url} if settings.s3_endpoint_url else {},
        # Callers wait and try again by themselves; the client's own patience would only hide an outage.
        config_kwargs={"retries": {"max_attempts": 2}, "connect_timeout": 5, "read_timeout": 30},
    )
