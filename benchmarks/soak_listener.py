"""Ten associations at once, for an hour: does the listener lose an object, or gather memory, threads, descriptors?

    python benchmarks/soak_listener.py --minutes 60 --json benchmarks/results/soak_listener.json

dcmtk's storescu sends objects of 0.5 MB under ever new UIDs; each Success that it was told is counted, and afterwards
looked for in the listener's tables. Retention deletes the pixels of studies a minute after they are complete, so that
the disk is bounded and the sweep is part of the load.

Memory goes up and down with what ten senders do at the moment, so windows of five minutes are compared, not samples.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from fuzz_listener import usage  # which also makes the tests' helpers importable
from receive import dcmtk, make_files

from integration.dicom_listener.process import Process

AT_ONCE, IN_A_ROW = 10, 20
_MOST_GROWTH = 0.05
_WARM_UP = 25_000  # objects; until then page caches fill, and the allocators of three processes find their size
_EVERY_S = 5.0
_WINDOW = 60  # samples


class Senders:
    """storescu again and again on each of the associations."""

    def __init__(self, files: Path, port: int) -> None:
        self.port = port
        self.lock = threading.Lock()
        self.answers: dict[str, int] = {"acknowledged": 0, "refused": 0, "associations": 0, "broken": 0}
        self.stop = threading.Event()
        self.threads = [
            threading.Thread(target=self._send, args=(next((files / str(n)).iterdir()),)) for n in range(AT_ONCE)
        ]
        for thread in self.threads:
            thread.start()

    def _send(self, file: Path) -> None:
        # two images a series, two series a study
        invented = ["--invent-instance", "--invent-series", "2", "--invent-study", "2", "--repeat", str(IN_A_ROW)]
        command = [dcmtk("storescu"), "-v", "-aec", "ECHO", *invented, "127.0.0.1", str(self.port), str(file)]
        while not self.stop.is_set():
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            told = done.stdout + done.stderr
            good = told.count("Received Store Response (Success)")
            with self.lock:
                self.answers["acknowledged"] += good
                self.answers["refused"] += told.count("Received Store Response") - good
                self.answers["associations"] += 1
                self.answers["broken"] += done.returncode != 0

    def end(self) -> None:
        """Let what is under way finish."""
        self.stop.set()
        for thread in self.threads:
            thread.join()


def watch(process: Process, senders: Senders, minutes: float) -> list[dict[str, Any]]:
    """A look every five seconds."""
    assert process.child is not None
    pid = process.child.pid
    samples: list[dict[str, Any]] = []
    began = time.monotonic()
    while (seconds := time.monotonic() - began) < 60 * minutes:
        samples.append({"seconds": round(seconds, 1), "objects": senders.answers["acknowledged"], **usage(pid)})
        if len(samples) % 12 == 0:
            print(samples[-1], file=sys.stderr, flush=True)
        time.sleep(_EVERY_S)
    return samples


def windows(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means of the samples after the warm-up, five minutes each; the last window ends with the run."""
    settled = [sample for sample in samples if sample["objects"] >= _WARM_UP]
    parts = [settled[at : at + _WINDOW] for at in range(len(settled) % _WINDOW, len(settled), _WINDOW)]
    return [
        {
            "from_s": part[0]["seconds"],
            "objects_per_s": round(
                (part[-1]["objects"] - part[0]["objects"]) / (part[-1]["seconds"] - part[0]["seconds"]), 1
            ),
            **{name: round(fmean(sample[name] for sample in part)) for name in ("pss_kib", "threads", "descriptors")},
            "pss_kib_each": [round(fmean(each)) for each in zip(*(s["pss_kib_each"] for s in part), strict=True)],
        }
        for part in parts
    ]


def run(folder: Path, minutes: float) -> dict[str, Any]:
    """One run."""
    files = folder / "files"
    make_files(files, AT_ONCE, (512, 512), AT_ONCE)
    process = Process(folder)
    # A minute of retention in days; a look for what is to be deleted every twenty seconds.
    process.start(release_seconds=2, retain_days=1 / 1440, sweep_seconds=20, maximum_associations=AT_ONCE + 2)
    senders = Senders(files, process.port)
    began = time.monotonic()
    try:
        samples = watch(process, senders, minutes)
    finally:
        senders.end()
    seconds = time.monotonic() - began
    rows = process.rows("select count(*), count(deleted_at) from instances")[0]
    here = process.rows("select object_key, size_bytes from instances where deleted_at is null")
    gone = [key for key, size in here if _size(process.objects / key) != size]
    # deleted between the two looks, by retention
    still = {key for (key,) in process.rows("select object_key from instances where deleted_at is null")}
    status = process.end(signal.SIGTERM)
    means = windows(samples)
    judged = len(means) > 1  # a run shorter than warm-up and two windows is not
    first, last = (means[0], means[-1]) if judged else (samples[-1], samples[-1])
    growth = last["pss_kib"] / first["pss_kib"] - 1
    lost = senders.answers["acknowledged"] - rows[0]
    return {
        "machine": f"{os.cpu_count()} cores shared with senders and other work, {platform.machine()}; "
        f"Python {platform.python_version()}",
        "minutes": round(seconds / 60, 1),
        "associations_at_once": AT_ONCE,
        **senders.answers,
        "objects_per_s": round(senders.answers["acknowledged"] / seconds, 1),
        "rows": rows[0],
        "lost": lost,
        "objects_deleted_by_retention": rows[1],
        "objects_not_whole": len(set(gone) & still),
        "warm_up": _WARM_UP,
        "memory_growth_after_warm_up": round(growth, 4) if judged else None,
        "memory_judged": judged,
        "exit_status": status,
        "windows": means,
        "samples": samples[:: max(1, len(samples) // 60)],
        "last": samples[-1],
        "passed": lost <= 0
        and not set(gone) & still
        and status == 0
        and growth <= _MOST_GROWTH
        and last["threads"] <= first["threads"] + AT_ONCE
        and last["descriptors"] <= first["descriptors"] + 3 * AT_ONCE,
    }


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def main() -> int:
    """Returns 1 if anything was lost or left, or memory grew by more than 5 percent between first and last window."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = run(Path(scratch), options.minutes)
    text = json.dumps(result, indent=1)
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=1))
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
