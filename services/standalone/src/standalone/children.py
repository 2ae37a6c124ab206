"""Child processes: started, watched, restarted, stopped, and cleaned up after a supervisor that was killed."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipeline.clock import Clock

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_LOG_LIMIT = 10 * 2**20
_KILLED_S = 60.0  # until a killed process is gone: it may have gigabytes to give back to a busy machine
_WRONG_SETTING = 2  # exit status by which every service says that a restart will not help


class ChildFailed(Exception):
    """A child did not become ready, or said that its settings are wrong."""


@dataclass(frozen=True)
class ChildSpec:
    """How to run one child."""

    name: str
    argv: Sequence[str]
    ready: Callable[[], bool]
    env: Mapping[str, str] = field(default_factory=dict)
    before_start: Callable[[], None] | None = None
    """Run before every start: what a dead predecessor left is put right here."""
    ready_timeout_s: float = 600.0
    """All start together, and the worker loads its model: minutes on a machine that does much else."""
    stop_timeout_s: float = 60.0


def _die_with_parent() -> None:
    """In the child, before exec: the kernel kills it when the supervisor dies, however that happens (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """One running child; its process id is on disk, so that a later supervisor can end it."""

    def __init__(self, spec: ChildSpec, run_dir: Path, log_dir: Path) -> None:
        self.spec = spec
        self._pid_file = run_dir / f"{spec.name}.pid.json"
        self._log_file = log_dir / f"{spec.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Spawn the process. Call from a thread that lives as long as the supervisor (see PDEATHSIG in prctl(2))."""
        if self.spec.before_start is not None:
            self.spec.before_start()
        if self._log_file.exists() and self._log_file.stat().st_size > _LOG_LIMIT:
            self._log_file.replace(self._log_file.with_suffix(".log.1"))
        with self._log_file.open("ab") as output:
            self.process = subprocess.Popen(
                list(self.spec.argv),
                env={**os.environ, **self.spec.env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C reaches the supervisor, which stops children in order
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        with contextlib.suppress(psutil.NoSuchProcess):
            created = psutil.Process(self.process.pid).create_time()
            self._pid_file.write_text(json.dumps({"pid": self.process.pid, "created": created}))

    def wait_ready(self, clock: Clock, stop: threading.Event) -> None:
        """Return when ready (or stopping); raises `ChildFailed` if it ends or takes too long."""
        assert self.process is not None
        deadline = clock.monotonic() + self.spec.ready_timeout_s
        while not stop.is_set():
            if self.process.poll() is not None:
                raise ChildFailed(f"{self.spec.name} ended with status {self.process.returncode}: {self.last_words()}")
            if self.spec.ready():
                return
            if clock.monotonic() > deadline:
                raise ChildFailed(
                    f"{self.spec.name} was not ready after {self.spec.ready_timeout_s:.0f} s; see {self._log_file}"
                )
            clock.wait(stop, 0.2)

    def last_words(self) -> str:
        """The last line of its log that is not JSON (a message for a person), else where the log is."""
        with contextlib.suppress(OSError):
            for line in reversed(self._log_file.read_text(errors="replace").splitlines()[-20:]):
                if line and not line.startswith("{"):
                    return line
        return f"see {self._log_file}"

    def stop(self) -> None:
        """SIGTERM, wait, SIGKILL."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(self.spec.stop_timeout_s)
            except subprocess.TimeoutExpired:
                log.warning("child had to be killed", extra={"child": self.spec.name})
                self.process.kill()
                self.process.wait()
        self._pid_file.unlink(missing_ok=True)


def end_leftovers(run_dir: Path) -> list[str]:
    """Kill children of a supervisor that died; a process is ours only if its start time agrees with the record."""
    ended = []
    for record in sorted(run_dir.glob("*.pid.json")):
        with contextlib.suppress(psutil.NoSuchProcess, ValueError, KeyError):
            content = json.loads(record.read_text())
            process = psutil.Process(content["pid"])
            if abs(process.create_time() - content["created"]) < 1.0 and not _is_over(process):
                family = [*process.children(recursive=True), process]
                for member in family:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.kill()
                until = time.monotonic() + _KILLED_S
                while not all(map(_is_over, family)) and time.monotonic() < until:
                    time.sleep(0.02)
                ended.append(record.name.removesuffix(".pid.json"))
        record.unlink()
    return ended


def _is_over(process: psutil.Process) -> bool:
    """Whether it holds nothing more: its threads have ended, too, and at most its new parent has to ask after it."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1)
    except psutil.NoSuchProcess:
        return True


class Supervisor:
    """Starts children in order, restarts the ones that die (with growing pauses), stops them in reverse order."""

    def __init__(self, clock: Clock, run_dir: Path, log_dir: Path) -> None:
        self._clock = clock
        self._run_dir = run_dir
        self._log_dir = log_dir
        self.children: list[Child] = []

    def start(self, stages: Sequence[Sequence[ChildSpec]], stop: threading.Event) -> None:
        """Each stage is started together and waited for before the next; raises `ChildFailed`."""
        for stage in stages:
            fresh = [Child(spec, self._run_dir, self._log_dir) for spec in stage]
            for child in fresh:
                self.children.append(child)
                child.start()
            for child in fresh:
                child.wait_ready(self._clock, stop)
                if not stop.is_set():
                    log.info("child ready", extra={"child": child.spec.name})

    def watch(self, stop: threading.Event) -> None:
        """Until stopped: restart what died. Raises `ChildFailed` when a child says that its settings are wrong."""
        died_at: dict[str, list[float]] = {}
        restart_at: dict[str, float] = {}
        while not self._clock.wait(stop, 0.2):
            now = self._clock.monotonic()
            for child in self.children:
                assert child.process is not None
                name, status = child.spec.name, child.process.poll()
                if status is None:
                    continue
                if name not in restart_at:
                    if status == _WRONG_SETTING:
                        raise ChildFailed(f"{name} ended with status {status}: {child.last_words()}")
                    recent = [t for t in died_at.get(name, []) if now - t < 60]
                    died_at[name] = [*recent, now]
                    restart_at[name] = now + min(30.0, 0.5 * 2 ** len(recent) if recent else 0.0)
                    log.error("child died", extra={"child": name, "status": status, "deaths_in_60_s": len(recent) + 1})
                if now >= restart_at[name]:
                    del restart_at[name]
                    child.start()

    def stop(self) -> None:
        """Stop all, last started first."""
        for child in reversed(self.children):
            child.stop()
