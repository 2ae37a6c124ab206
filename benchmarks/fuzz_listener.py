"""Damaged conversations against `python -m dicom_listener`, watched from outside: memory, threads, descriptors.

    python benchmarks/fuzz_listener.py --count 100000 --json benchmarks/results/fuzz_listener.json

The listener works in a scratch folder (in memory where there is /dev/shm, since it is not the disk that is asked).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))

from integration.dicom_listener.fuzz import Fuzzer, echo, kinds  # noqa: E402  # found by the line above

_WARM_UP = 20_000  # conversations; until then page caches fill, and the allocators of three processes find their size
_MOST_GROWTH = 0.05


def usage(pid: int) -> dict[str, Any]:
    """Memory in KiB, in all and of each process, threads and open descriptors of a process and its children.

    Memory is the proportional set size: pages that forked processes share count once.
    """
    listener = psutil.Process(pid)
    processes = [listener, *listener.children()]
    each = [process.memory_full_info().pss // 1024 for process in processes]
    return {
        "pss_kib": sum(each),
        "pss_kib_each": each,
        "threads": sum(process.num_threads() for process in processes),
        "descriptors": sum(process.num_fds() for process in processes),
    }


def start(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The listener and its DICOM port."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("ECHO_")},
        "ECHO_DATABASE_URL": f"sqlite:///{folder}/l.sqlite3",
        "ECHO_BUS_URL": f"sqlite:///{folder}/bus.sqlite3",
        "ECHO_OBJECT_STORE_URL": f"file://{folder}/objects",
        "ECHO_DICOM_HOST": "127.0.0.1",
        "ECHO_DICOM_PORT": "0",
        "ECHO_HTTP_HOST": "127.0.0.1",
        "ECHO_HTTP_PORT": "0",
        "ECHO_MIN_FREE_BYTES": "0",
        "ECHO_NETWORK_TIMEOUT_SECONDS": "5",
        "ECHO_REQUEST_TIMEOUT_SECONDS": "5",
    }
    log = folder / "log"
    with log.open("wb") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "dicom_listener"],
            env=environment,
            stdout=stream,
            stderr=stream,
        )
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and child.poll() is None:
        for line in log.read_text().splitlines():
            if '"message": "ready"' in line:
                return child, int(json.loads(line)["dicom_port"])
        time.sleep(0.2)
    raise SystemExit(f"the listener did not start: {log.read_text()[-2000:]}")


def main() -> int:
    """Returns 1 if memory grew by more than 5 percent after the warm-up, or anything was left behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        result = run(Path(scratch), options)
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0 if result["passed"] else 1


def run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run."""
    child, port = start(folder)
    fuzzers = [Fuzzer(port, options.seed * 1000 + number) for number in range(options.senders)]
    share = options.count // options.senders
    began = time.monotonic()
    threads = [threading.Thread(target=each.run, args=(share,)) for each in fuzzers]
    for thread in threads:
        thread.start()
    samples: list[dict[str, Any]] = []
    while any(thread.is_alive() for thread in threads):
        time.sleep(5)
        done = sum(sum(each.answers.values()) for each in fuzzers)
        samples.append({"seconds": round(time.monotonic() - began, 1), "done": done, **usage(child.pid)})
        if len(samples) % 12 == 0:
            print(samples[-1], file=sys.stderr, flush=True)
    seconds = time.monotonic() - began
    time.sleep(8)  # longer than the time limits: everything that was open is closed
    end = usage(child.pid)
    answers: dict[str, int] = {}
    for each in fuzzers:
        for answer, count in each.answers.items():
            answers[answer] = answers.get(answer, 0) + count
    echoed = echo(port)
    staged = len(list((folder / "objects" / ".staging").iterdir()))
    child.terminate()
    status = child.wait(timeout=60)
    warm = [sample for sample in samples if sample["done"] >= min(_WARM_UP, options.count / 2)] or samples
    # Memory goes up and down with what the senders do at the moment, so means of a quarter of the samples are compared.
    quarter = max(1, len(warm) // 4)
    first, last = (fmean(sample["pss_kib"] for sample in some) for some in (warm[:quarter], warm[-quarter:]))
    growth = max(last, end["pss_kib"]) / first - 1
    return {
        "what": "damaged data sets, commands, PDUs and association requests from a seeded generator",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, shared with other work; "
        f"Python {platform.python_version()}",
        "count": sum(answers.values()),
        "seed": options.seed,
        "senders": options.senders,
        "seconds": round(seconds, 1),
        "answers": {answer: answers[answer] for answer in kinds(answers)},
        "warm_up": _WARM_UP,
        "memory_growth_after_warm_up": round(growth, 4),
        "pss_kib_first_and_last_quarter": [round(first), round(last)],
        "after": end,
        "echo_at_the_end": echoed,
        "staged_files_left": staged,
        "exit_status": status,
        "samples": samples[:: max(1, len(samples) // 60)],
        "passed": growth <= _MOST_GROWTH
        and echoed == "status 0000"
        and staged == 0
        and status == 0
        and end["threads"] <= warm[0]["threads"]
        and end["descriptors"] <= warm[0]["descriptors"],
    }


if __name__ == "__main__":
    raise SystemExit(main())
