"""Services that are started before what they need: they wait, say so, and can be ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from servers.cut_proxy import CutProxy
from servers.ports import free_port

pytestmark = pytest.mark.timeout(900)
SERVICES = [
    pytest.param("dispatcher", {}, id="dispatcher"),
    pytest.param("console", {}, id="console"),
    pytest.param("fhir_writer", {}, id="fhir_writer"),
    pytest.param("dicom_listener", {}, id="dicom_listener"),
    pytest.param("dicom_listener", {"ECHO_RECEIVING_PROCESSES": "2"}, id="dicom_listener-2"),
]


class Start:
    """A service that is starting."""

    def __init__(self, service: str, folder: Path, env: dict[str, str]) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self._log = folder / "log"
        common = {
            "ECHO_HTTP_HOST": "127.0.0.1",
            "ECHO_HTTP_PORT": str(port),
            "ECHO_DICOM_HOST": "127.0.0.1",
            "ECHO_DICOM_PORT": "0",
            "ECHO_MIN_FREE_BYTES": "0",
            "ECHO_DATABASE_URL": f"sqlite:///{folder}/service.sqlite3",
            "ECHO_BUS_URL": f"sqlite:///{folder}/bus.sqlite3",
            "ECHO_OBJECT_STORE_URL": f"file://{folder}/objects",
            "ECHO_BROKER_URL": "redis://127.0.0.1:1/0",
            "ECHO_FHIR_BASE_URL": "http://127.0.0.1:1/fhir",
            "ECHO_SITE_TIMEZONE": "Europe/Berlin",
            "PYTHONFAULTHANDLER": "1",
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-m", service], env=os.environ | common | env, stderr=log)

    def text(self) -> str:
        return self._log.read_text()

    def said(self, message: str) -> list[dict[str, object]]:
        whole, _, _half = self.text().rpartition("\n")  # the last line may be under way
        lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return [line for line in lines if line["message"] == message]

    def wait_for(self, message: str) -> dict[str, object]:
        """The first log line of that message."""
        deadline = time.monotonic() + 240
        while not (lines := self.said(message)):
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.05)
        return lines[0]

    def end(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to end; the exit status."""
        self.process.send_signal(signum)
        return self.status()

    def status(self) -> int:
        """The exit status. A loop that does not end is given up, and named, after a minute."""
        try:
            return self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # writes where each thread is
            self.process.wait()
            raise AssertionError(f"did not end: {self.text()}") from None

    def asked(self, path: str) -> int:
        """The status of the answer."""
        return httpx.get(f"{self.url}{path}", timeout=120).status_code


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Start]]:
    started: list[Start] = []

    def start(service: str, **env: str) -> Start:
        started.append(Start(service, tmp_path, env))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def at_port(url: str, port: int) -> str:
    return sa.make_url(url).set(host="127.0.0.1", port=port).render_as_string(hide_password=False)


@pytest.mark.parametrize(("service", "env"), SERVICES)
def test_a_database_that_comes_later_is_waited_for(
    start: Callable[..., Start], postgres_url: str, service: str, env: dict[str, str]
) -> None:
    port = free_port()
    starting = start(service, ECHO_DATABASE_URL=at_port(postgres_url, port), **env)
    waits = starting.wait_for("start waits")
    assert waits["setting"] == "ECHO_DATABASE_URL"
    assert "Connection refused" in str(waits["reason"])
    assert starting.asked("/healthz") == 200
    assert starting.asked("/readyz") == 503
    server = sa.make_url(postgres_url)
    proxy = CutProxy(f"{server.host}:{server.port}", port)
    try:
        starting.wait_for("ready")
        assert starting.asked("/healthz") == 200
        assert starting.end() == 0, starting.text()
    finally:
        proxy.close()


@pytest.mark.parametrize(("service", "env"), SERVICES)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_waits_ends_with_0_when_told_to(
    start: Callable[..., Start], service: str, env: dict[str, str], signum: signal.Signals
) -> None:
    starting = start(service, ECHO_DATABASE_URL=f"postgresql+psycopg://echo@127.0.0.1:{free_port()}/echo", **env)
    starting.wait_for("start waits")
    assert starting.end(signum) == 0, starting.text()
    assert starting.said("stopped")


def test_kafka_that_is_away_is_waited_for_too(start: Callable[..., Start]) -> None:
    starting = start("console", ECHO_BUS_URL=f"kafka://127.0.0.1:{free_port()}")
    waits = starting.wait_for("start waits")
    assert waits["setting"] == "ECHO_BUS_URL"
    assert "nothing answers" in str(waits["reason"])
    assert starting.end() == 0, starting.text()


@pytest.mark.parametrize("env", [{}, {"ECHO_RECEIVING_PROCESSES": "2"}])
def test_a_database_that_is_not_there_is_a_wrong_setting(
    start: Callable[..., Start], postgres_url: str, env: dict[str, str]
) -> None:
    starting = start("dicom_listener", ECHO_DATABASE_URL=f"{postgres_url}_not", **env)
    assert starting.status() == 2
    assert "wrong setting ECHO_DATABASE_URL: " in starting.text()
    assert "does not exist" in starting.text()


def test_an_error_that_nobody_foresaw_ends_the_start(start: Callable[..., Start], tmp_path: Path) -> None:
    (tmp_path / "broken.sqlite3").write_bytes(b"not a database, " * 100)
    starting = start(
        "dicom_listener", ECHO_DATABASE_URL=f"sqlite:///{tmp_path}/broken.sqlite3", ECHO_RECEIVING_PROCESSES="2"
    )
    assert starting.status() == 1


def test_a_folder_that_is_not_there_is_a_wrong_setting(start: Callable[..., Start], tmp_path: Path) -> None:
    starting = start("dispatcher", ECHO_DATABASE_URL=f"sqlite:///{tmp_path}/not/there.sqlite3")
    assert starting.status() == 2
    assert "wrong setting ECHO_DATABASE_URL: unable to open database file" in starting.text()
