"""How a service lives and dies: a real process, real signals, a real port."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from pipeline.http import HttpServer, bind, service_app

SERVICE = Path(__file__).parent / "example_service.py"
ENDS_S = 120
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a service; it has ended when the test has, whatever came of it."""
    started: list[subprocess.Popen[str]] = []

    def one(*arguments: str, port: int = 0) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, str(SERVICE), *arguments],
                env={**os.environ, "ECHO_HTTP_HOST": "127.0.0.1", "ECHO_HTTP_PORT": str(port)},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield one
    for process in started:
        with process:  # closes its pipe, and waits
            process.kill()


def until_ready(process: subprocess.Popen[str]) -> dict[str, object]:
    """The log line "ready"."""
    assert process.stderr is not None
    for line in process.stderr:
        entry: dict[str, object] = json.loads(line)
        if entry["message"] == "ready":
            return entry
    raise AssertionError("ended without being ready")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_0(start: Start, number: signal.Signals) -> None:
    process = start("work")
    ready = until_ready(process)
    assert ready["answer"] == 42
    url = f"http://127.0.0.1:{ready['http_port']}"
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready", "checks": {}}
    assert "echo_events_consumed_total" in httpx.get(f"{url}/metrics").text
    process.send_signal(number)
    _, rest = process.communicate(timeout=ENDS_S)
    assert process.returncode == 0
    messages = [json.loads(line)["message"] for line in rest.splitlines()]
    assert {*messages[:2]} == {"stopping", "drained"}
    assert messages[2:] == ["first", "second", "stopped"]


def test_a_signal_at_any_moment_is_heard(start: Start) -> None:
    process = start("interrupted")
    _, log = process.communicate(timeout=ENDS_S)
    assert process.returncode == 0, log
    messages = [json.loads(line)["message"] for line in log.splitlines()]
    assert [each for each in messages if each in ("handled", "stopped")] == ["handled", "stopped"]


def test_a_signal_that_another_thread_gets_is_heard(start: Start) -> None:
    _, log = start("aside").communicate(timeout=120)
    assert json.loads(log.splitlines()[-1])["message"] == "stopped"


def test_a_failing_check_is_named_without_its_text(start: Start) -> None:
    process = start("work", "unready")
    url = f"http://127.0.0.1:{until_ready(process)['http_port']}"
    answer = httpx.get(f"{url}/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"status": "not ready", "checks": {"never": "failed: RuntimeError"}}
    assert httpx.get(f"{url}/healthz").status_code == 200


@pytest.mark.parametrize(("how", "error"), [("die", "ValueError"), ("leave", "RuntimeError"), ("exit", "SystemExit")])
def test_a_loop_that_ends_takes_the_process_down(start: Start, how: str, error: str) -> None:
    process = start(how)
    _, log = process.communicate(timeout=ENDS_S)
    assert process.returncode == 1
    [death] = [json.loads(line) for line in log.splitlines() if "loop died" in line]
    assert (death["loop"], death["exception"]) == ("loop", error)
    assert "Doe" not in log


def test_a_port_in_use_is_a_wrong_setting(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start("work", port=port)
        _, message = process.communicate(timeout=ENDS_S)
    assert process.returncode == 2
    assert f"wrong setting ECHO_HTTP_PORT: port {port} on 127.0.0.1 is in use" in message


def test_an_idle_connection_is_given_up_by_who_asks_before_the_server_closes_it() -> None:
    sock = bind("127.0.0.1", 0)
    server = HttpServer(service_app({}, threading.Event()), sock)
    sock.close()
    expiry = httpx.Limits().keepalive_expiry
    assert expiry is not None
    assert server._server.config.timeout_keep_alive > 2 * expiry
