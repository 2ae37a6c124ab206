"""Last image to report accepted, through the whole embedded flow: python benchmarks/end_to_end.py [--studies N].

One study after another and then all at once; the quiet period is taken off. Writes benchmarks/results/end_to_end.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from e2e.flow import QUIET_SECONDS, EmbeddedFlow, Study, send, wait_delivered  # noqa: E402  # the path is set above
from pipeline.clock import parse_iso  # noqa: E402  # the path is set above


def machine() -> str:
    """The machine in words."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {cpu}, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def spread(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and range in seconds."""
    ordered = sorted(values)
    return {
        "p50_s": round(statistics.median(ordered), 3),
        "p95_s": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 3),
        "min_s": round(ordered[0], 3),
        "max_s": round(ordered[-1], 3),
    }


def hops(study: dict[str, Any]) -> dict[str, float]:
    """Seconds between the first time each event of the timeline was seen, by event."""
    seen: dict[str, float] = {}
    for line in study["timeline"]:
        seen.setdefault(line["event"], parse_iso(line["at"]).timestamp())
    ordered = sorted(seen.items(), key=lambda item: item[1])
    return {name: round(at - before, 3) for (_, before), (name, at) in pairwise(ordered)}


def main() -> None:
    """Run and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "end_to_end.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        command = [str(Path(sys.executable).with_name("echo-model")), "phantoms", "--out", f"{scratch}/p"]
        subprocess.run(
            [*command, "--count", str(options.studies), "--seed", "5", "--dicom"], check=True, stdout=subprocess.DEVNULL
        )
        templates = sorted(Path(f"{scratch}/p").glob("*.dcm"))
        started = time.monotonic()
        flow = EmbeddedFlow(Path(scratch) / "data")
        try:
            flow.wait_ready()
            start_s = time.monotonic() - started
            run = uuid.uuid4().hex[:6]
            alone, last = [], {}
            for number, template in enumerate(templates):
                study = Study(template, run, number)
                assert send(study.image(), flow.dicom_port) == 0
                sent = time.time()
                last = wait_delivered(flow, study.uid)
                delivered = max(parse_iso(line["at"]).timestamp() for line in last["timeline"])
                alone.append(delivered - sent - QUIET_SECONDS)
            burst = [Study(template, run + "b", number) for number, template in enumerate(templates)]
            sent = time.time()
            for study in burst:
                assert send(study.image(), flow.dicom_port) == 0
            ends = [
                max(parse_iso(line["at"]).timestamp() for line in wait_delivered(flow, study.uid)["timeline"])
                for study in burst
            ]
            burst_s = max(ends) - sent
        finally:
            flow.stop()
    result = {
        "machine": machine(),
        "studies": len(templates),
        "start_to_ready_s": round(start_s, 1),
        "one_at_a_time_last_image_to_delivered_without_quiet_period": spread(alone),
        "hops_of_one_study_s": hops(last),
        "burst_studies_per_hour": round(len(burst) / burst_s * 3600),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
