"""scripts/services.sh itself, on a set of servers of its own: other ports, another folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from servers import env, probe

SCRIPT = env.REPOSITORY / "scripts" / "services.sh"

pytestmark = pytest.mark.timeout(1800)
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def settings(tmp_path: Path, free_port: Callable[[], int]) -> dict[str, str]:
    return {
        **os.environ,
        "ECHO_CXR_SERVICES_DIR": str(tmp_path / "services"),
        "ECHO_TEST_POSTGRES_PORT": str(free_port()),
        "ECHO_TEST_REDIS_PORT": str(free_port()),
        "ECHO_CXR_NO_INSTALL": "1",
    }


@pytest.fixture
def run(settings: dict[str, str]) -> Iterator[Run]:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([SCRIPT, *arguments], env=settings, capture_output=True, text=True, timeout=600)

    yield call
    ended = call("wipe")
    assert ended.returncode == 0, ended.stderr


def process(status: str, name: str) -> int | None:
    found = re.search(rf"^{name} +(\d+) ", status, re.MULTILINE)
    return int(found[1]) if found else None


@pytest.mark.needs("redis")
def test_start_is_idempotent_and_stop_leaves_nothing(run: Run) -> None:
    first = run("start", "redis")
    assert first.returncode == 0, first.stderr
    pid = process(run("status", "redis").stdout, "redis")
    assert pid is not None

    again = run("start", "redis")
    assert again.returncode == 0
    assert "runs already" in again.stdout
    assert process(run("status", "redis").stdout, "redis") == pid

    assert run("stop", "redis").returncode == 0
    assert not probe.alive(pid)
    after = run("status", "redis")
    assert after.returncode == 3
    assert "not ready" in after.stdout
    assert run("stop", "redis").returncode == 0


@pytest.mark.needs("redis")
def test_two_starts_at_once_start_one_server(settings: dict[str, str], run: Run) -> None:
    both = [
        subprocess.Popen([SCRIPT, "start", "redis"], env=settings, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = sorted(each.communicate(timeout=600)[0] for each in both)
    assert [each.returncode for each in both] == [0, 0]
    assert "ready in" in said[0]
    assert "runs already" in said[1]


@pytest.mark.needs("postgres", "redis")
def test_killed_servers_come_back_with_their_data(settings: dict[str, str], run: Run) -> None:
    cache = f"redis://127.0.0.1:{settings['ECHO_TEST_REDIS_PORT']}"
    database = f"postgresql://echo@127.0.0.1:{settings['ECHO_TEST_POSTGRES_PORT']}/echo"
    started = run("start", "postgres", "redis")
    assert started.returncode == 0, started.stderr
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
    with redis.Redis.from_url(cache) as client:
        client.set("kept", "42")

    killed = run("kill", "postgres", "redis")
    assert killed.returncode == 0, killed.stderr
    assert killed.stdout.count("KILL") == 2
    assert run("status", "postgres", "redis").returncode == 3

    restarted = run("start", "postgres", "redis")
    assert restarted.returncode == 0, restarted.stderr
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT n FROM kept").fetchone() == (42,)
    with redis.Redis.from_url(cache) as client:
        assert client.get("kept") == b"42"


@pytest.mark.needs("redis")
def test_a_port_in_use_is_named_and_the_others_start(settings: dict[str, str], run: Run) -> None:
    settings["ECHO_TEST_POSTGRES_PORT"] = str(env.port("REDIS"))  # somebody listens there
    result = run("start", "postgres", "redis")
    assert result.returncode == 1
    assert f"port {env.port('REDIS')} is in use" in result.stderr
    assert "redis" in result.stdout


@pytest.mark.needs("redis")
def test_a_foreign_process_id_is_not_touched(settings: dict[str, str], run: Run) -> None:
    bystander = subprocess.Popen(["sleep", "3600"])
    try:
        folder = Path(settings["ECHO_CXR_SERVICES_DIR"]) / "redis"
        folder.mkdir(parents=True)
        (folder / "pid").write_text(str(bystander.pid))
        assert run("kill", "redis").returncode == 0
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.needs("dcmtk", "dicom3tools")
def test_a_missing_package_is_named_and_the_others_start(settings: dict[str, str], run: Run, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in ("/usr/bin", "/bin"):
        for program in Path(folder).iterdir():
            if program.name != "dciodvfy" and not (programs / program.name).exists():
                (programs / program.name).symlink_to(program)
    python = programs / "python3"
    python.unlink(missing_ok=True)
    python.symlink_to(shutil.which("python3") or sys.executable)
    settings["PATH"] = str(programs)
    result = run("start", "dcmtk", "dicom3tools")
    assert result.returncode == 1
    assert re.search(r"^dicom3tools +not installed.*dicom3tools$", result.stderr, re.MULTILINE)
    assert "storescu" in result.stdout
