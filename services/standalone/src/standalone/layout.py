"""The data folder of one standalone instance: what lies where, and the lock that keeps a second instance out."""

from __future__ import annotations

import fcntl
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_SOCKET_PATH_LIMIT = 100  # bytes of sun_path, less a margin (104 on macOS, 108 on Linux)
MARKER = "echo-cxr-data"


class DataDirInUse(Exception):
    """Another instance serves this data folder."""


@dataclass(frozen=True)
class DataDir:
    """Paths below the folder that `--data-dir` names."""

    root: Path

    def create(self) -> None:
        """Make the folders and the marker by which the folder is known to be ours."""
        for folder in (self.root, self.databases, self.objects, self.logs, self.run, self.valkey, self.ehr):
            folder.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)  # images and identifiers lie below
        (self.root / MARKER).touch()

    @property
    def databases(self) -> Path:
        """One SQLite file per service, and the event log."""
        return self.root / "db"

    @property
    def objects(self) -> Path:
        """DICOM objects and job manifests."""
        return self.root / "objects"

    @property
    def logs(self) -> Path:
        """One file per process."""
        return self.root / "log"

    @property
    def run(self) -> Path:
        """Process ids, the lock, sockets."""
        return self.root / "run"

    @property
    def valkey(self) -> Path:
        """The task queue's append-only file."""
        return self.root / "valkey"

    @property
    def ehr(self) -> Path:
        """The embedded EHR."""
        return self.root / "ehr"

    def database_url(self, name: str) -> str:
        """SQLAlchemy URL of one SQLite file."""
        return f"sqlite:///{self.databases / name}.sqlite3"

    def socket_path(self) -> Path:
        """The task queue's Unix socket; in a short temporary folder when this folder's path is too long for one."""
        path = self.run / "valkey.sock"
        if len(os.fsencode(path)) <= _SOCKET_PATH_LIMIT:
            return path
        stat = self.root.stat()
        folder = Path(tempfile.gettempdir()) / f"echo-cxr-{os.getuid()}-{stat.st_dev:x}-{stat.st_ino:x}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise DataDirInUse(f"{folder} belongs to another user")
        return folder / "valkey.sock"

    def lock(self) -> IO[str]:
        """Hold the instance lock until the returned file is closed or the process dies; raises `DataDirInUse`."""
        file = (self.run / "lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise DataDirInUse(f"process {holder} is serving {self.root} already") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        return file
