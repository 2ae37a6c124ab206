"""What chaos does to the cluster: which fault when, drawn from a seed, and the faults. Each ends by itself."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import redis

from e2e.flow import ClusterFlow
from servers import env
from servers.cut_proxy import CutProxy

ROOT = Path(__file__).parents[1]
SERVERS = ("kafka", "redis", "postgres", "hapi")
LINKS = (*SERVERS, "dicom")
PROCESSES = (*ClusterFlow.SERVICES, *SERVERS)
TARGETS = {
    "kill": PROCESSES,
    "stop": PROCESSES,
    "cut": LINKS,
    "flush": ("redis",),
    "fill": ("objects",),
    "mute": LINKS,
}
SHARES = {"kill": 4, "stop": 4, "cut": 4, "flush": 1, "fill": 1}
"""Of so many faults in a row, this many are of each kind; within a kind every target has its turn."""
MUTE_SHARE = 3
"""Of connections that stay open and carry nothing more, as behind a firewall that forgot them; only when asked for."""
SECONDS = {
    "kill": (0.0, 6.0),
    "stop": (2.0, 25.0),
    "cut": (0.0, 10.0),
    "flush": (0.0, 0.0),
    "fill": (5.0, 20.0),
    "mute": (0.0, 0.0),
}
"""How long it lasts; a killed server takes its time to start on top."""
PAUSE_S = (5.0, 15.0)
STORE_BYTES = 256 * 2**20
LEFT_BYTES = (0, 24 * 2**20)
"""A full store: to the last byte, or below the mark at which the listener refuses."""
_STEP = 64 * 1024
MARKS = {"ECHO_MIN_FREE_BYTES": str(32 * 2**20), "ECHO_RESUME_FREE_BYTES": str(48 * 2**20)}


@dataclass(frozen=True)
class Fault:
    """Seconds count from the start of the load; `left_bytes` is what filling leaves free."""

    at_s: float
    kind: str
    target: str
    for_s: float
    left_bytes: int = 0


def _dealt(rng: random.Random, cards: list[str]) -> Iterator[str]:
    while True:
        yield from rng.sample(cards, len(cards))


def plan(seed: int, seconds: float, kinds: Mapping[str, int] = SHARES) -> list[Fault]:
    """The same faults for the same seed."""
    rng = random.Random(seed)
    kind_deck = _dealt(rng, [kind for kind, share in kinds.items() for _ in range(share)])
    target_decks = {kind: _dealt(rng, list(TARGETS[kind])) for kind in kinds}
    faults, at = [], rng.uniform(*PAUSE_S)
    while at < seconds:
        kind = next(kind_deck)
        faults.append(
            Fault(
                round(at, 1),
                kind,
                next(target_decks[kind]),
                round(rng.uniform(*SECONDS[kind]), 1),
                rng.choice(LEFT_BYTES) if kind == "fill" else 0,
            )
        )
        at += rng.uniform(*PAUSE_S)
    return faults


def services_sh(*arguments: str) -> None:
    """Run the script that owns the servers."""
    subprocess.run([str(ROOT / "scripts" / "services.sh"), *arguments], check=True, capture_output=True, timeout=900)


def start_servers(*names: str) -> None:
    """Start them and wait until they answer: on a busy machine that takes longer than the script waits."""
    deadline = time.monotonic() + 900
    while True:
        try:
            services_sh("start", *names)
            return
        except subprocess.CalledProcessError as error:
            if time.monotonic() > deadline:
                raise RuntimeError(error.stderr.decode(errors="replace")[-500:]) from error
            time.sleep(2.0)


def family(pid: int) -> list[int]:
    """A process and all that came from it."""
    return [pid, *(member.pid for member in psutil.Process(pid).children(recursive=True))]


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a file system of `STORE_BYTES` at the folder; False where that is not allowed."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={STORE_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Faults:
    """Carries out a plan, from the monotonic time `started` on.

    Faults of different targets overlap; a target under a fault is spared another.
    """

    def __init__(
        self, flow: ClusterFlow, redis_url: str, objects: Path, links: Mapping[str, CutProxy], started: float
    ) -> None:
        self._flow = flow
        self._redis_url = redis_url
        self._objects = objects
        self._links = links
        self._started = started
        self._locks = {name: threading.Lock() for name in (*PROCESSES, "objects", *(f"to {name}" for name in LINKS))}
        self._do: dict[str, Callable[[Fault], None]] = {
            "kill": self._kill,
            "stop": self._stop,
            "cut": lambda fault: self._links[fault.target].cut(fault.for_s),
            "mute": lambda fault: self._links[fault.target].silence(),
            "flush": self._flush,
            "fill": self._fill,
        }
        self.done: list[dict[str, Any]] = []
        self.ended: list[tuple[float, str, int]] = []
        """Processes that ended without a fault: when, which, status."""
        self.failures: list[str] = []

    def run(self, faults: list[Fault]) -> None:
        """Until the last one has ended."""
        threads = [threading.Thread(target=self._one, args=(fault,)) for fault in faults]
        for fault, thread in zip(faults, threads, strict=True):
            time.sleep(max(0.0, self._started + fault.at_s - time.monotonic()))
            thread.start()
        for thread in threads:
            thread.join()

    @contextlib.contextmanager
    def restarting(self) -> Iterator[None]:
        """What ends by itself meanwhile is started again, as Kubernetes does."""
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(1.0):
                for name in self._flow.SERVICES:
                    if self._locks[name].acquire(blocking=False):
                        try:
                            self._start_if_ended(name)
                        finally:
                            self._locks[name].release()

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _start_if_ended(self, name: str) -> None:
        status = self._flow.processes[name].poll()
        if status is None:
            return
        self.ended.append((round(self._now(), 1), name, status))
        print(f"{self._now():7.1f} s  {name} ended by itself, status {status}", flush=True)
        self._flow.start(name)

    def _now(self) -> float:
        return time.monotonic() - self._started

    def _one(self, fault: Fault) -> None:
        lock = self._locks[f"to {fault.target}" if fault.kind in ("cut", "mute") else fault.target]
        if not lock.acquire(blocking=False):
            return
        at = self._now()
        print(f"{at:7.1f} s  {fault.kind} {fault.target}, {fault.for_s:.0f} s", flush=True)
        try:
            self._do[fault.kind](fault)
        except Exception as error:  # noqa: BLE001  # told at the end: the run must go on and tidy up
            self.failures.append(f"{fault.kind} {fault.target}: {error!r}")
            print(f"         {self.failures[-1]}", flush=True)
        finally:
            lock.release()
            self.done.append(asdict(fault) | {"at_s": round(at, 1), "lasted_s": round(self._now() - at, 1)})

    def _kill(self, fault: Fault) -> None:
        if fault.target in SERVERS:
            services_sh("kill", fault.target)
            time.sleep(fault.for_s)
            start_servers(fault.target)
            return
        process = self._flow.processes[fault.target]
        for pid in family(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        time.sleep(fault.for_s)
        self._flow.start(fault.target)

    def _stop(self, fault: Fault) -> None:
        if fault.target in SERVERS:
            pid = int((env.services_dir() / fault.target / "pid").read_text(encoding="ascii"))
        else:
            pid = self._flow.processes[fault.target].pid
        os.kill(pid, signal.SIGSTOP)  # first the one that could start others
        pids = family(pid)
        try:
            for child in pids[1:]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGSTOP)
        finally:
            # By a process of its own: they go on even if this one is ended meanwhile.
            going_on = f"sleep {fault.for_s}; kill -CONT {' '.join(map(str, pids))}"
            subprocess.run(["sh", "-c", going_on], stderr=subprocess.DEVNULL, start_new_session=True)

    def _flush(self, fault: Fault) -> None:
        with redis.Redis.from_url(self._redis_url) as database:
            database.flushdb()

    def _fill(self, fault: Fault) -> None:
        ballast = self._objects / "ballast"
        try:
            with ballast.open("wb") as file, contextlib.suppress(OSError):
                free = os.statvfs(self._objects)
                wanted = free.f_bavail * free.f_frsize - fault.left_bytes
                for offset in range(0, wanted + _STEP, _STEP) if not fault.left_bytes else range(0, wanted, _STEP):
                    os.posix_fallocate(file.fileno(), offset, _STEP)  # to the last byte: until there is no more
            time.sleep(fault.for_s)
        finally:
            ballast.unlink(missing_ok=True)
