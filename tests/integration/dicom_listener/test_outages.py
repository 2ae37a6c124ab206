"""The process while its disk is full, its database is away, or its clock jumps: it says no for now, and recovers."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from pydicom.dataset import Dataset

from integration.dicom_listener.peers import Sender, data_set_bytes, encoded, image, new_uid, wait_for
from integration.dicom_listener.process import Ballast, Process, small_disk
from pipeline.events import STUDY_COMPLETED
from servers import env

MIB = 2**20
DAY = 86_400
AWAY, KEPT = 0xA700, 0x0000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 8) as folder:
        yield folder


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    """Those put in here are gone at the end."""
    running: list[Process] = []
    yield running
    for process in running:
        process.kill()


def refused(process: Process) -> dict[str, int]:
    """How many of each reason its database knows."""
    return {
        str(reason): int(n) for reason, n in process.rows("select reason, sum(count) from refusals group by reason")
    }


def check(process: Process, kept: list[Dataset]) -> None:
    """All of them are there, whole, listed in an event; nothing else is."""
    rows = dict(process.rows("select sop_instance_uid, object_key from instances"))
    assert set(rows) == {ds.SOPInstanceUID for ds in kept}
    for ds in kept:
        assert data_set_bytes(process.objects / rows[ds.SOPInstanceUID]) == encoded(ds)
    files = {path.relative_to(process.objects).as_posix() for path in (process.objects / "objects").rglob("*.dcm")}
    assert files == set(rows.values())
    assert process.staged() == []
    wait_for(lambda: process.rows("select count(*) from studies where state = 'open'") == [(0,)])
    wait_for(lambda: process.rows("select count(*) from outbox where published_at is null") == [(0,)])
    ((count,),) = process.rows("select count(*) from outbox")
    completed: dict[tuple[str, int], set[str]] = {}
    for event in process.events(count):
        if event.type == STUDY_COMPLETED:
            version = (event.key, event.data["study_version"])
            assert version not in completed
            completed[version] = {each["sop_instance_uid"] for each in event.data["instances"]}
    assert set().union(*completed.values()) == set(rows)
    assert process.end(signal.SIGTERM) == 0


def test_low_space_with_hysteresis(tmp_path: Path, disk: Path, processes: list[Process]) -> None:
    process = Process(tmp_path)
    processes.append(process)
    process.objects = disk / "objects"
    process.start(min_free_bytes=2 * MIB, resume_free_bytes=4 * MIB)
    ballast, first, second = Ballast(disk), image(size=300), image(size=700)
    with Sender(process.port) as sender, Sender(process.port) as other:  # each in a process of its own
        assert sender.send(first) == KEPT
        ballast.leave(3 * MIB)
        assert [sender.send(first), other.send(first)] == [KEPT] * 2
        ballast.leave(MIB)
        assert sender.send(second) == AWAY
        assert sender.assoc.send_c_echo().Status == 0
        ballast.leave(3 * MIB)  # as much as was enough before, but not yet again
        assert [sender.send(second), other.send(second)] == [AWAY] * 2
        ballast.leave(5 * MIB)
        assert [sender.send(second), other.send(second)] == [KEPT] * 2
    wait_for(lambda: refused(process).get("low_space") == 3)
    check(process, [first, second])


def test_disk_full_in_the_middle_of_an_object(tmp_path: Path, disk: Path, processes: list[Process]) -> None:
    process = Process(tmp_path)
    processes.append(process)
    process.objects = disk / "objects"
    process.start()
    ballast, small, large = Ballast(disk), image(size=300), image(size=1500)
    with Sender(process.port) as sender:
        ballast.leave(MIB)
        assert sender.send(large) == AWAY
        assert process.staged() == []
        assert sender.send(small) == KEPT
        assert sender.send(large) == AWAY
        ballast.leave(4 * MIB)
        assert sender.send(large) == KEPT
    wait_for(lambda: refused(process) == {"store_unavailable": 2})
    check(process, [small, large])


@pytest.mark.parametrize("objects_too", [True, False], ids=["everything", "the database alone"])
def test_disk_of_the_database_is_full(
    tmp_path: Path, disk: Path, processes: list[Process], *, objects_too: bool
) -> None:
    process = Process(disk)
    processes.append(process)
    process.log = tmp_path / "log"
    if not objects_too:
        process.objects = tmp_path / "objects"
    process.start()
    ballast = Ballast(disk)
    images = [image(size=100) for _ in range(4)]
    with Sender(process.port) as sender:
        assert sender.send(images[0]) == KEPT
        ballast.leave(0)
        assert [sender.send(ds) for ds in images[1:]] == [AWAY] * 3
        assert sender.assoc.send_c_echo().Status == 0
    # The first study would be complete now, and its event sent.
    wait_for(lambda: "completeness waits" in process.log.read_text())
    with httpx.Client(base_url=f"http://127.0.0.1:{process.fields['http_port']}", timeout=30) as http:
        assert http.get("/healthz").status_code == 200
    ballast.leave(4 * MIB)
    with Sender(process.port) as sender:
        assert [sender.send(ds) for ds in images] == [KEPT] * 4
    check(process, images)


Services = Callable[..., None]


@pytest.fixture
def own_postgres(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[tuple[str, Services]]:
    """A PostgreSQL of this test alone, and scripts/services.sh for it."""
    port = str(free_port())
    settings = {
        **os.environ,
        "ECHO_CXR_SERVICES_DIR": str(tmp_path / "services"),
        "ECHO_TEST_POSTGRES_PORT": port,
        "ECHO_CXR_NO_INSTALL": "1",
    }

    def services(command: str) -> None:
        script = str(env.REPOSITORY / "scripts" / "services.sh")
        subprocess.run([script, command, "postgres"], env=settings, check=True, capture_output=True, timeout=240)

    try:
        services("start")
        yield f"postgresql+psycopg://echo@127.0.0.1:{port}/echo", services
    finally:
        services("wipe")


@pytest.mark.needs("postgres")
@pytest.mark.slow
def test_database_away(tmp_path: Path, own_postgres: tuple[str, Services], processes: list[Process]) -> None:
    url, services = own_postgres
    process = Process(tmp_path, url=url)
    processes.append(process)
    process.start(network_timeout_seconds=600)  # the sender says nothing while the database starts
    study = new_uid()
    images = [image(study, size=100) for _ in range(6)]
    with Sender(process.port) as sender:
        assert [sender.send(ds) for ds in images[:2]] == [KEPT] * 2
        services("kill")
        assert [sender.send(ds) for ds in images[1:4]] == [AWAY] * 3
        assert sender.assoc.send_c_echo().Status == 0
        services("start")
        assert [sender.send(ds) for ds in images[1:]] == [KEPT] * 5
    with Sender(process.port) as other:
        services("restart")  # in order, while the pool has connections
        late = image(study)
        wait_for(lambda: other.send(late) == KEPT)
    wait_for(lambda: refused(process).get("database_unavailable", 0) >= 3)
    check(process, [*images, late])


def test_a_start_while_kafka_is_away(tmp_path: Path, processes: list[Process], free_port: Callable[[], int]) -> None:
    process = Process(tmp_path)
    processes.append(process)
    embedded = process.bus_url
    process.bus_url = f"kafka://127.0.0.1:{free_port()}"
    process.start()
    ds = image()
    with Sender(process.port) as sender:
        assert sender.send(ds) == KEPT
    wait_for(lambda: process.rows("select state from studies") == [("complete",)])
    assert process.end(signal.SIGTERM) == 0
    assert "events wait for the bus" in process.log.read_text()
    process.bus_url = embedded  # one that is there
    process.start()
    check(process, [ds])


def test_clock_that_jumps(tmp_path: Path, processes: list[Process]) -> None:
    offset = tmp_path / "offset"
    process = Process(tmp_path, command=(str(Path(__file__).with_name("jumping_clock.py")), str(offset)))
    processes.append(process)

    def jump(seconds: int) -> None:
        """At once: a half written figure must not be read."""
        (tmp_path / "new").write_text(str(seconds))
        (tmp_path / "new").rename(offset)

    def reasons() -> dict[str, str | None]:
        return dict(process.rows("select study_instance_uid, reason from studies where state = 'complete'"))

    def metrics() -> str:
        return httpx.get(f"http://127.0.0.1:{process.fields['http_port']}/metrics", timeout=30).text

    jump(0)
    quiet = 4.0
    process.start(quiet_seconds=600, release_seconds=0.5)
    set_back, set_forward, restarted = image(), image(), image()
    with Sender(process.port) as sender:
        assert sender.send(set_back) == KEPT
        jump(-DAY)
    wait_for(lambda: reasons() == {set_back.StudyInstanceUID: "association_released"})  # not a day late
    assert process.end(signal.SIGTERM) == 0
    process.start(quiet_seconds=quiet, release_seconds=0.5)

    with Sender(process.port) as sender:
        began = time.monotonic()
        assert sender.send(set_forward) == KEPT
        # Seen while it is open, so that the jump can do harm; on a slow machine it may be over already.
        wait_for(lambda: "echo_dicom_open_studies 1.0" in metrics() or set_forward.StudyInstanceUID in reasons())
        jump(DAY)
        wait_for(lambda: set_forward.StudyInstanceUID in reasons())
        assert time.monotonic() - began >= quiet  # nor early
    assert reasons()[set_forward.StudyInstanceUID] == "quiet_period"

    with Sender(process.port) as sender:
        assert sender.send(restarted) == KEPT
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
    jump(0)
    process.start(quiet_seconds=quiet, release_seconds=0.5)
    wait_for(lambda: restarted.StudyInstanceUID in reasons())
    check(process, [set_back, set_forward, restarted])
