"""Children are started, restarted, stopped; what a killed supervisor leaves is ended by the next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.clock import SystemClock
from standalone.children import Child, ChildFailed, ChildSpec, Supervisor, end_leftovers

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def _spec(name: str, argv: list[str], **more: Any) -> ChildSpec:
    return ChildSpec(name=name, argv=argv, ready=lambda: True, **more)


def _wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _over(process: psutil.Process) -> bool:
    """Whether it has ended, even if nobody has waited for it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # just now
        return True


def test_a_child_that_dies_is_started_again_after_its_preparation(tmp_path: Path) -> None:
    prepared: list[int] = []
    stop = threading.Event()
    supervisor = Supervisor(SystemClock(), tmp_path, tmp_path)
    supervisor.start([[_spec("one", SLEEP, before_start=lambda: prepared.append(1))]], stop)
    (child,) = supervisor.children
    assert child.process is not None
    first = child.process.pid
    assert prepared == [1]
    watching = threading.Thread(target=supervisor.watch, args=(stop,))
    watching.start()
    try:
        os.kill(first, signal.SIGKILL)
        _wait(lambda: child.process is not None and child.process.pid != first)
        assert prepared == [1, 1]
    finally:
        stop.set()
        watching.join()
        second = child.process.pid
        supervisor.stop()
    assert not psutil.pid_exists(second)
    assert list(tmp_path.glob("*.pid.json")) == []


def test_a_child_that_ends_before_it_is_ready_is_told_with_its_last_words(tmp_path: Path) -> None:
    words = "wrong setting ECHO_MODEL: is 'x'; no such folder"
    spec = ChildSpec("bad", [sys.executable, "-c", f"import sys; sys.exit({words!r})"], ready=lambda: False)
    with pytest.raises(ChildFailed, match="wrong setting ECHO_MODEL"):
        Supervisor(SystemClock(), tmp_path, tmp_path).start([[spec]], threading.Event())


def test_a_child_that_takes_sigterm_for_nothing_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    child = Child(_spec("deaf", [sys.executable, "-c", code], stop_timeout_s=0.2), tmp_path, tmp_path)
    child.start()
    assert child.process is not None
    try:
        _wait(lambda: "deaf" in (tmp_path / "deaf.log").read_text())
    finally:
        child.stop()
    assert child.process.returncode == -signal.SIGKILL


def test_leftovers_are_ended_and_strangers_are_not(tmp_path: Path) -> None:
    ours, stranger = (subprocess.Popen(SLEEP, start_new_session=True) for _ in range(2))
    created = psutil.Process(ours.pid).create_time()
    (tmp_path / "ours.pid.json").write_text(f'{{"pid": {ours.pid}, "created": {created}}}')
    # The process id was given to another process since: its start time tells.
    (tmp_path / "other.pid.json").write_text(f'{{"pid": {stranger.pid}, "created": {created - 5000}}}')
    (tmp_path / "broken.pid.json").write_text("{")
    try:
        assert end_leftovers(tmp_path) == ["ours"]
        assert ours.poll() == -signal.SIGKILL
        assert stranger.poll() is None
        assert list(tmp_path.glob("*.pid.json")) == []
    finally:
        for process in (ours, stranger):
            process.kill()
            process.wait()


@pytest.mark.skipif(
    sys.platform != "linux", reason="the parent-death signal is Linux's; elsewhere the next start cleans up"
)
def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    code = f"""
import sys, threading, time
from pathlib import Path
from pipeline.clock import SystemClock
from standalone.children import ChildSpec, Supervisor
folder = Path({str(tmp_path)!r})
supervisor = Supervisor(SystemClock(), folder, folder)
supervisor.start([[ChildSpec("one", {SLEEP!r}, ready=lambda: True)]], threading.Event())
print(supervisor.children[0].process.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            child = psutil.Process(int(parent.stdout.readline()))
        finally:
            parent.kill()
    _wait(lambda: _over(child))
