"""SIGKILL between any two steps of receiving: what was acknowledged is there, whole; what was not can be sent again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dicom_listener.adapters.tables import instances, outbox, studies
from integration.dicom_listener.peers import Sender, data_set_bytes, encoded, image, new_uid, wait_for
from integration.dicom_listener.process import listener_settings, ready_fields
from pipeline.database import Database
from pipeline.events import STUDY_COMPLETED, STUDY_OPENED, Event
from pipeline.sql_bus import SqlBus

POINTS = [
    ("chunk_written", 3),
    ("file_whole", 3),
    ("file_renamed", 6),
    ("folder_synced", 3),
    ("row_written", 3),
    ("row_committed", 3),
    ("success_sent", 3),
    ("before_publishing", 1),
    ("published", 1),
    ("marked", 1),
]
RELAYING = ("before_publishing", "published", "marked")


class Forks:
    """Starts listeners that kill themselves, or none."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("killed_at.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        assert self._line() == "ready"
        self._pid: int | None = None

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, **order: Any) -> int:
        """Returns its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        self._pid = int(self._line())
        return self._pid

    def ended(self) -> int:
        """Its exit status, waited for."""
        status = int(self._line())
        self._pid = None
        return status

    def end(self) -> None:
        """If a test has left one: it would be waited for, and the next one not started."""
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self.ended()


@pytest.fixture
def forks(forks_of_all: Forks) -> Iterator[Forks]:
    yield forks_of_all
    forks_of_all.end()


@pytest.fixture(scope="module")
def forks_of_all() -> Iterator[Forks]:
    running = Forks()
    yield running
    assert running.process.stdin is not None
    running.process.stdin.close()
    running.process.wait(timeout=60)
    assert running.process.stdout is not None
    running.process.stdout.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres"))])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """The database and the event bus."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/l.sqlite3", f"sqlite:///{tmp_path}/bus.sqlite3"
    url = str(request.getfixturevalue("postgres_url"))
    return url, url


class Place:
    """What the processes leave behind: files, rows, events."""

    def __init__(self, urls: tuple[str, str], folder: Path) -> None:
        self.url, self.bus_url = urls
        self.objects = folder / "objects"
        self.log = folder / "log"
        self.database = Database(self.url)

    def environment(self, **settings: object) -> dict[str, str]:
        chosen = {"maximum_pdu_bytes": 16384, "quiet_seconds": 600, **settings}
        return listener_settings(self.url, self.bus_url, self.objects, **chosen)

    def ready_port(self) -> int:
        wait_for(lambda: ready_fields(self.log), 180)
        return int(ready_fields(self.log)["dicom_port"])

    def all(self, query: sa.Select[Any]) -> list[Any]:
        with self.database.read() as connection:
            return list(connection.execute(query).all())

    def rows(self) -> dict[str, str]:
        """Object key of each SOP Instance UID."""
        return dict(tuple(row) for row in self.all(sa.select(instances.c.sop_instance_uid, instances.c.object_key)))

    def files(self) -> set[str]:
        return {path.relative_to(self.objects).as_posix() for path in (self.objects / "objects").rglob("*.dcm")}

    def staged(self) -> list[Path]:
        return list((self.objects / ".staging").iterdir())

    def settled(self) -> bool:
        """No study is open, and then (closing one writes an event) none waits for the bus."""
        if self.all(sa.select(studies).where(studies.c.state == "open")):
            return False
        return not self.all(sa.select(outbox.table.c.id).where(outbox.table.c.published_at.is_(None)))

    def events(self) -> list[Event]:
        """Everything on the bus, duplicates included."""
        written = {Event.from_bytes(row.payload).id for row in self.all(sa.select(outbox.table))}
        bus = SqlBus(self.bus_url, partitions=6)
        consumer = bus.consumer("test", [STUDY_OPENED, STUDY_COMPLETED])
        read: list[Event] = []

        def all_read() -> bool:
            read.extend(Event.from_bytes(record.value) for record in consumer.poll(0.2))
            return bus.lag("test", [STUDY_OPENED, STUDY_COMPLETED]) <= len(read) and {e.id for e in read} >= written

        wait_for(all_read)
        consumer.close()
        bus.close()
        assert {event.id for event in read} == written
        return read


@pytest.mark.parametrize(("point", "nth"), POINTS)
def test_killed(tmp_path: Path, forks: Forks, urls: tuple[str, str], point: str, nth: int) -> None:
    place = Place(urls, tmp_path)
    environment = place.environment(release_seconds=600)
    forks.start(point=point, nth=nth, environment=environment, log=str(place.log))
    study = new_uid()
    images = [image(study, size=400) for _ in range(4)]
    sent = {str(ds.SOPInstanceUID): encoded(ds) for ds in images}
    sender = Sender(place.ready_port())
    acknowledged: set[str] = set()
    for ds in images:
        if not sender.assoc.is_established or sender.send(ds) != 0:
            break
        acknowledged.add(str(ds.SOPInstanceUID))
    if sender.assoc.is_established:
        wait_for(lambda: not sender.assoc.is_established)
    assert forks.ended() == -signal.SIGKILL, place.log.read_text()
    assert len(acknowledged) < 4 or point in RELAYING
    for key in place.files():  # whole, or not visible; whether it was acknowledged or not
        assert hashlib.sha256((place.objects / key).read_bytes()).hexdigest() == Path(key).stem

    again = place.environment(release_seconds=0.2, orphan_grace_seconds=0, sweep_seconds=0.1)
    place.log.unlink()
    pid = forks.start(point=None, nth=0, environment=again, log=str(place.log))
    port = place.ready_port()
    assert place.staged() == []
    wait_for(lambda: place.files() == set(place.rows().values()))  # no orphan, no row without an object
    rows = place.rows()
    assert acknowledged <= set(rows)
    assert {uid: data_set_bytes(place.objects / key) for uid, key in rows.items()} == {uid: sent[uid] for uid in rows}
    wait_for(place.settled)
    with Sender(port) as retry:  # the sender tries everything again, as a PACS does
        assert [retry.send(ds) for ds in images] == [0] * 4
    assert set(place.rows()) == set(sent)
    wait_for(place.settled)
    os.kill(pid, signal.SIGTERM)
    assert forks.ended() == 0, place.log.read_text()
    check_events(place.events(), point, first=set(rows), all_of_them=set(sent))
    place.database.close()


def check_events(events: list[Event], point: str, *, first: set[str], all_of_them: set[str]) -> None:
    """One event opens and one completes each version; the bus has one twice where marking did not come about."""
    different = {event.id: event for event in events}
    twice = len(events) - len(different)
    assert twice == 1 if point == "published" else twice in (0, 1)  # the relay may be at it at any other point, too
    told = Counter((event.type, event.data["study_version"]) for event in different.values())
    versions = {1} if first in (set(), all_of_them) else {1, 2}
    assert told == Counter((kind, version) for kind in (STUDY_OPENED, STUDY_COMPLETED) for version in versions)
    listed = {
        event.data["study_version"]: {each["sop_instance_uid"] for each in event.data["instances"]}
        for event in different.values()
        if event.type == STUDY_COMPLETED
    }
    assert listed == ({1: all_of_them} if versions == {1} else {1: first, 2: all_of_them})
