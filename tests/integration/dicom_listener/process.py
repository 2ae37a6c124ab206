"""The listener as a process, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from integration.dicom_listener.peers import new_uid, wait_for, wait_until_equal
from pipeline.buses import make_bus
from pipeline.database import Database
from pipeline.events import ALL_TOPICS, Event
from pipeline.settings import BusSettings

OK_OF_ALL = {"database": "ok", "object_store": "ok", "dicom_port": "ok"}


def listener_settings(url: str, bus_url: str, objects: Path, **settings: object) -> dict[str, str]:
    """A listener on free ports of the loopback, as environment variables."""
    chosen: dict[str, object] = {
        "database_url": url,
        "bus_url": bus_url,
        "object_store_url": f"file://{objects}",
        "dicom_host": "127.0.0.1",
        "dicom_port": 0,
        "http_host": "127.0.0.1",
        "http_port": 0,
        "min_free_bytes": 0,
        **settings,
    }
    return {f"ECHO_{name.upper()}": str(value) for name, value in chosen.items()}


def ready_fields(log: Path) -> dict[str, Any]:
    """What the log line "ready" says; empty before. The last line may still be being written."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return next((dict(json.loads(line)) for line in lines if '"message": "ready"' in line), {})


class Process:
    """`python -m dicom_listener` on one data folder; it can be started again there.

    `command` is what follows `python`; `url` another database than SQLite in that folder.
    """

    def __init__(self, folder: Path, *, command: Sequence[str] = ("-m", "dicom_listener"), url: str | None = None):
        self.folder = folder
        self.log = folder / "log"
        self.objects = folder / "objects"
        self.url = url or f"sqlite:///{folder}/l.sqlite3"
        self.bus_url = url or f"sqlite:///{folder}/bus.sqlite3"
        self.command = [sys.executable, *command]
        self.child: subprocess.Popen[bytes] | None = None
        self.fields: dict[str, Any] = {}

    def environment(self, **settings: object) -> dict[str, str]:
        chosen = {"quiet_seconds": 60, "release_seconds": 0.2, **settings}
        others = {name: value for name, value in os.environ.items() if not name.startswith("ECHO_")}
        shows_threads = {"PYTHONFAULTHANDLER": "1"}  # at SIGABRT
        return others | shows_threads | listener_settings(self.url, self.bus_url, self.objects, **chosen)

    def start(self, **settings: object) -> None:
        """Returns once it is ready in all its processes."""
        self.log.unlink(missing_ok=True)  # a process of before, about to end, may still hold the old one
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(self.command, env=self.environment(**settings), stderr=log, stdout=log)
        wait_for(self.is_ready, 180)
        wait_until_equal(self.readiness, OK_OF_ALL, 180)

    def readiness(self) -> dict[str, str]:
        """What each check of /readyz says of the database, the store and the DICOM port."""
        answer = httpx.get(f"http://127.0.0.1:{self.fields['http_port']}/readyz", timeout=60)
        return {name: state for name, state in answer.json()["checks"].items() if name in OK_OF_ALL}

    def is_ready(self) -> bool:
        assert self.child is not None
        assert self.child.poll() is None, self.log.read_text()
        self.fields = ready_fields(self.log)
        return bool(self.fields)

    @property
    def port(self) -> int:
        return int(self.fields["dicom_port"])

    def end(self, signum: int) -> int:
        assert self.child is not None
        self.child.send_signal(signum)
        return self.ended()

    def ended(self, seconds: float = 120) -> int:
        """Its exit status, waited for."""
        assert self.child is not None
        try:
            return self.child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.child.send_signal(signal.SIGABRT)  # writes where each thread is
            self.child.wait(timeout=60)
            raise AssertionError(f"did not end: {self.log.read_text()}") from None

    def kill(self) -> None:
        """If it lives still."""
        if self.child is not None and self.child.poll() is None:
            self.child.kill()
            self.child.wait()

    def rows(self, query: str) -> list[Any]:
        """Asked of its database by another connection."""
        database = Database(self.url)
        try:
            with database.read() as connection:
                return [tuple(row) for row in connection.execute(sa.text(query)).all()]
        finally:
            database.close()

    def staged(self) -> list[Path]:
        return list((self.objects / ".staging").iterdir())

    def events(self, count: int) -> list[Event]:
        """The first `count` different events on the bus, waited for. It may have some twice, if it was killed."""
        bus = make_bus(BusSettings(bus_url=self.bus_url))
        consumer = bus.consumer(f"test-{new_uid()}", list(ALL_TOPICS))
        events: dict[str, Event] = {}
        deadline = time.monotonic() + 90
        while len(events) < count and time.monotonic() < deadline:
            for record in consumer.poll(0.2):
                event = Event.from_bytes(record.value)
                events.setdefault(event.id, event)
        consumer.close()
        bus.close()
        return list(events.values())


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of that size. Only root may mount one; others skip the test."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a process that was killed may be in it still


class Ballast:
    """A file that leaves so much of a disk free."""

    def __init__(self, disk: Path) -> None:
        self.path = disk / "ballast"

    def leave(self, free_bytes: int) -> None:
        self.path.unlink(missing_ok=True)
        stat = os.statvfs(self.path.parent)
        with contextlib.suppress(OSError), self.path.open("wb", buffering=0) as file:
            for _ in range((stat.f_bavail * stat.f_frsize - free_bytes) // 4096):
                file.write(bytes(4096))
