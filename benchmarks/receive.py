"""How fast objects are received, beside dcmtk's storescp and Orthanc: same files, same sender, same run.

    python benchmarks/receive.py --json benchmarks/results/receive.json

dcmtk's storescu sends; at a width of n, n of them at once, each its share of the files. Every receiver starts on empty
folders for each measurement. This listener and Orthanc sync each object to the disk before they answer, storescp never
does, so its figure is a ceiling and not a rival. A receiver whose every object was not kept has no figure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from servers import env  # found by the line above

DX = "1.2.840.10008.5.1.4.1.1.1.1"
SIZES = {"12 MB": (2450, 2450), "0.5 MB": (512, 512)}
WIDTHS = (1, 4, 10)


def dcmtk(program: str) -> str:
    """Its path; ends the benchmark without it."""
    found = env.tool(program)
    if found is None:
        raise SystemExit(f"dcmtk's {program} is not installed")
    return found


def make_files(folder: Path, count: int, shape: tuple[int, int], senders: int) -> int:
    """DX objects of noise in one folder a sender; returns their bytes."""
    rows, columns = shape
    noise = random.Random(1).randbytes(rows * columns * 2)
    total = 0
    for number in range(count):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = DX, f"2.25.{time.time_ns()}{number}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = f"2.25.7{number // 2}", f"2.25.8{number}"
        ds.PatientID, ds.PatientName, ds.StudyDate, ds.StudyTime = "PHANTOM-1", "PHANTOM^ONE", "20260105", "080000"
        ds.StudyID, ds.AccessionNumber, ds.SeriesNumber, ds.InstanceNumber = "1", f"EX-{number // 2}", 1, number
        ds.Modality, ds.BodyPartExamined, ds.PhotometricInterpretation = "DX", "CHEST", "MONOCHROME2"
        ds.Rows, ds.Columns, ds.SamplesPerPixel = rows, columns, 1
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.PixelData = noise
        ds["PixelData"].VR = "OW"
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        target = folder / str(number % senders)
        target.mkdir(parents=True, exist_ok=True)
        ds.save_as(target / f"{number}.dcm", enforce_file_format=True)
        total += (target / f"{number}.dcm").stat().st_size
    return total


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        return int(probing.getsockname()[1])


@contextmanager
def running(
    command: list[str], folder: Path, answers: Callable[[], bool], environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A receiver, from the moment it answers."""
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not answers():
            if child.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield child
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(timeout=60)


def echoes(port: int) -> bool:
    """Whether a C-ECHO is answered."""
    command = ["echoscu", "-aec", "ECHO", "127.0.0.1", str(port)]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


@contextmanager
def listener(folder: Path) -> Iterator[tuple[int, Callable[[], int], int]]:
    """This project's, with SQLite and the embedded bus: port, count of kept objects, process."""
    port = free_port()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("ECHO_")},
        "ECHO_DATABASE_URL": f"sqlite:///{folder}/l.sqlite3",
        "ECHO_BUS_URL": f"sqlite:///{folder}/bus.sqlite3",
        "ECHO_OBJECT_STORE_URL": f"file://{folder}/objects",
        "ECHO_DICOM_HOST": "127.0.0.1",
        "ECHO_DICOM_PORT": str(port),
        "ECHO_HTTP_HOST": "127.0.0.1",
        "ECHO_HTTP_PORT": "0",
        "ECHO_MIN_FREE_BYTES": "0",
    }
    command = [sys.executable, "-m", "dicom_listener"]
    with running(command, folder, lambda: echoes(port), environment) as child:
        yield port, lambda: sum(1 for _ in (folder / "objects" / "objects").rglob("*.dcm")), child.pid


@contextmanager
def storescp(folder: Path) -> Iterator[tuple[int, Callable[[], int], int]]:
    """dcmtk's, one process an association, which is its fastest way."""
    port, target = free_port(), folder / "received"
    target.mkdir()
    command = [dcmtk("storescp"), "--fork", "-pdu", "131072", "-aet", "ECHO", "-od", str(target), str(port)]
    with running(command, folder, lambda: echoes(port)) as child:
        yield port, lambda: sum(1 for _ in target.iterdir()), child.pid


@contextmanager
def orthanc(folder: Path) -> Iterator[tuple[int, Callable[[], int], int]]:
    """Orthanc as it comes, on folders of its own."""
    port, http = free_port(), free_port()
    configuration = {
        "Name": "bench",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": http,
        "DicomPort": port,
        "DicomAet": "ECHO",
        "DicomServerEnabled": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "DicomCheckCalledAet": False,
        "Plugins": [],
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))

    def count() -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/statistics", timeout=30) as answer:
            return int(json.load(answer)["CountInstances"])

    with running(["Orthanc", str(folder / "orthanc.json")], folder, lambda: echoes(port)) as child:
        yield port, count, child.pid


RECEIVERS = {"echo-cxr listener": listener, "dcmtk storescp (no sync)": storescp, "Orthanc": orthanc}


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children, those that have ended too."""
    receiver = psutil.Process(pid)
    total = 0.0
    for process in (receiver, *receiver.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended in the meantime
            total += sum(process.cpu_times()[:4])  # its own and that of those that it waited for
    return total


def measure(name: str, sources: Path, senders: int, count: int, size: int, scratch: Path) -> dict[str, Any]:
    """One receiver, one width."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        with RECEIVERS[name](folder) as (port, kept, pid):
            before = cpu_seconds(pid)
            began = time.monotonic()
            children = [
                subprocess.Popen(
                    [
                        dcmtk("storescu"),
                        "-pdu",
                        "131072",
                        "-aec",
                        "ECHO",
                        "+sd",
                        "127.0.0.1",
                        str(port),
                        str(sources / str(n)),
                    ],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                for n in range(senders)
            ]
            for child in children:
                child.wait(timeout=600)
            seconds = time.monotonic() - began
            cpu = cpu_seconds(pid) - before
            complete = kept() == count
    finally:
        shutil.rmtree(folder)
    return {
        "receiver": name,
        "associations": senders,
        "seconds": round(seconds, 2),
        "mb_per_s": round(size / seconds / 1e6, 1) if complete else None,
        "objects_per_s": round(count / seconds, 1) if complete else None,
        "receiver_cpu_s": round(cpu, 2),
    }


def median(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The round of median seconds, with those of all; without a figure if one of them has none."""
    if any(each["mb_per_s"] is None for each in rounds):
        return next(each for each in rounds if each["mb_per_s"] is None)
    by_time = sorted(rounds, key=lambda each: each["seconds"])
    return {**by_time[len(rounds) // 2], "seconds_of_all_rounds": [each["seconds"] for each in rounds]}


def main() -> None:
    """Print the table, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", type=int, default=120, help="objects of 12 MB")
    parser.add_argument("--small", type=int, default=600, help="objects of 0.5 MB")
    parser.add_argument("--rounds", type=int, default=3, help="each receiver in turn; the median counts")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for words, shape in SIZES.items():
            count = options.large if words == "12 MB" else options.small
            for senders in WIDTHS:
                sources = scratch / "sources"
                size = make_files(sources, count, shape, senders)
                measured: dict[str, list[dict[str, Any]]] = {name: [] for name in RECEIVERS}
                for _ in range(options.rounds):
                    for name in RECEIVERS:
                        measured[name].append(measure(name, sources, senders, count, size, scratch))
                        print(words, measured[name][-1], flush=True)
                rows += [{"objects": words, **median(each)} for each in measured.values()]
                shutil.rmtree(sources)
    ratios = {}
    for words in SIZES:
        for senders in WIDTHS:
            ours, ceiling, rival = (
                next(
                    row["mb_per_s"]
                    for row in rows
                    if (row["objects"], row["associations"], row["receiver"]) == (words, senders, name)
                )
                for name in RECEIVERS
            )
            ratios[f"{words}, {senders} associations"] = {
                "over_orthanc": round(ours / rival, 2) if ours and rival else None,
                "over_storescp": round(ours / ceiling, 2) if ours and ceiling else None,
            }
    result = {
        "machine": f"{os.cpu_count()} cores shared by receiver, senders and other work, {platform.machine()}; "
        f"Python {platform.python_version()}; load before the run {load_before:.1f}",
        "durable": "the listener and Orthanc sync each object before they answer; storescp does not",
        "rounds": options.rounds,
        "objects_of_12_mb": options.large,
        "objects_of_0_5_mb": options.small,
        "ratios": ratios,
        "rows": rows,
    }
    print(json.dumps(ratios, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
