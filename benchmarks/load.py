"""A day's load in a few minutes: python benchmarks/load.py [--studies-per-hour 1000] [--minutes 12] [--burst 100].

Studies of two images (frontal and lateral) arrive at the embedded flow as a Poisson process, with one burst in the
middle. Measured for each study: last image to report accepted by the FHIR server, the quiet period taken off, and the
hops between. Writes benchmarks/results/load.json and docs/images/load.png: where the time goes, study by study.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from end_to_end import ROOT, machine, spread
from pydicom.uid import UID
from pynetdicom import AE

from e2e.flow import QUIET_SECONDS, EmbeddedFlow, Study, study_of
from pipeline.clock import parse_iso

#: Hops of the stacked plot: what ends each, by the first event of its kind on the timeline.
HOPS = {
    "study complete": "imaging.study.completed.v1",
    "requested": "imaging.report.requested.v1",
    "waiting for a worker": "imaging.report.started.v1",
    "model": "imaging.report.generated.v1",
    "delivery": "imaging.report.delivered.v1",
}
_WAIT_S = 600.0


@dataclass(frozen=True)
class Sent:
    """A study on its way: when its last image was acknowledged (epoch seconds), and whether it came in the burst."""

    uid: str
    at: float
    burst: bool


def arrivals(rng: random.Random, per_hour: float, minutes: float) -> list[float]:
    """Seconds of a Poisson process."""
    times, at = [], rng.expovariate(per_hour / 3600)
    while at < minutes * 60:
        times.append(at)
        at += rng.expovariate(per_hour / 3600)
    return times


def store(study: Study, lateral: Path, port: int) -> float:
    """Both images in one association; returns when the second was acknowledged. Raises RuntimeError for a refusal."""
    frontal, other = study.image(), pydicom.dcmread(lateral)
    for keyword in (
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "AccessionNumber",
        "StudyInstanceUID",
    ):
        setattr(other, keyword, getattr(frontal, keyword))
    other.SeriesInstanceUID = f"2.25.{uuid.uuid4().int}"
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = UID(f"2.25.{uuid.uuid4().int}")
    ae = AE(ae_title="MODALITY")
    ae.add_requested_context(frontal.SOPClassUID, frontal.file_meta.TransferSyntaxUID)
    assoc = ae.associate("127.0.0.1", port, ae_title="ECHO")
    if not assoc.is_established:
        raise RuntimeError("no association")
    statuses = [assoc.send_c_store(ds).get("Status", 0xFFFF) for ds in (frontal, other)]
    at = time.time()
    assoc.release()
    if any(statuses):
        raise RuntimeError(f"refused: {statuses}")
    return at


def hops(study: dict[str, Any], sent: float) -> dict[str, float]:
    """Seconds of each hop; the first is what completion took beyond the quiet period."""
    seen: dict[str, float] = {}
    for line in study["timeline"]:
        seen.setdefault(line["event"], parse_iso(line["at"]).timestamp())
    result, before = {}, sent + QUIET_SECONDS
    for name, event in HOPS.items():
        at = seen.get(event, before)
        result[name] = round(at - before, 3)
        before = at
    return result


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Where the time went, a bar a study in order of arrival."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    places = range(len(rows))
    in_burst = [place for place, row in zip(places, rows, strict=True) if row["burst"]]
    if in_burst:
        axis.axvspan(in_burst[0] - 0.5, in_burst[-1] + 0.5, color="#f0f0f0", label="the burst")
    base = [0.0] * len(rows)
    for name, colour in zip(HOPS, ("#c7d5e0", "#7fb2d9", "#d98e32", "#1b6ca8", "#5a9367"), strict=True):
        values = [max(0.0, row["hops"][name]) for row in rows]
        axis.bar(places, values, width=1.0, bottom=base, label=name, color=colour)
        base = [low + value for low, value in zip(base, values, strict=True)]
    axis.set_xlabel("studies in the order of their last images")
    axis.set_ylabel("seconds after the quiet period")
    axis.legend(fontsize=8, frameon=False)
    figure.savefig(file, dpi=110)


def main() -> None:
    """Run and write the result; exits with 1 when a study was refused or got no report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies-per-hour", type=float, default=1_000)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--burst", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "load.json")
    parser.add_argument("--png", type=Path, default=ROOT / "docs" / "images" / "load.png")
    options = parser.parse_args()
    times = [(at, False) for at in arrivals(random.Random(options.seed), options.studies_per_hour, options.minutes)]
    times += [(options.minutes * 30, True)] * options.burst
    sent: list[Sent] = []
    failed: list[str] = []
    lock = threading.Lock()
    with tempfile.TemporaryDirectory() as scratch:
        command = [str(Path(sys.executable).with_name("echo-model")), "phantoms", "--out", f"{scratch}/p", "--lateral"]
        subprocess.run([*command, "--count", "30", "--seed", "5", "--dicom"], check=True, stdout=subprocess.DEVNULL)
        laterals = sorted(Path(f"{scratch}/p").glob("*-lateral.dcm"))
        frontals = [file.with_name(file.name.replace("-lateral", "")) for file in laterals]
        flow = EmbeddedFlow(Path(scratch) / "data")
        try:
            flow.wait_ready()
            run, started = uuid.uuid4().hex[:6], time.time()

            def one(number: int, burst: bool) -> None:
                study = Study(frontals[number % len(frontals)], run, number)
                try:
                    at = store(study, laterals[number % len(laterals)], flow.dicom_port)
                except RuntimeError as error:
                    with lock:
                        failed.append(str(error))
                    return
                with lock:
                    sent.append(Sent(study.uid, at, burst))

            with ThreadPoolExecutor(8) as senders:
                for number, (at, burst) in enumerate(sorted(times)):
                    time.sleep(max(0.0, started + at - time.time()))
                    senders.submit(one, number, burst)
            rows = [_row(flow, some, started) for some in sorted(sent, key=lambda some: some.at)]
        finally:
            flow.stop()
    delivered = [row for row in rows if row["seconds"] is not None]
    steady = [row for row in delivered if not row["burst"] and not _behind_burst(row, options)]
    in_burst = [row["seconds"] for row in delivered if row["burst"]]
    result = {
        "machine": machine(),
        "studies_per_hour": options.studies_per_hour,
        "minutes": options.minutes,
        "burst": options.burst,
        "sent": len(sent),
        "refused": len(failed),
        "without_report": len(rows) - len(delivered),
        "outside_the_burst": spread([row["seconds"] for row in steady]),
        "counted_with_neither": len(delivered) - len(steady) - len(in_burst),
        "in_the_burst": spread(in_burst) if in_burst else None,
        "hops_outside_the_burst_mean_s": {
            name: round(sum(row["hops"][name] for row in steady) / max(1, len(steady)), 3) for name in HOPS
        },
    }
    options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    plot(delivered, options.png)
    print(json.dumps(result, indent=2))
    if failed or len(delivered) < len(rows):
        raise SystemExit(1)


def _behind_burst(row: dict[str, Any], options: argparse.Namespace) -> bool:
    """Whether a study arrived while the burst was still being worked off: counted with neither."""
    return bool(options.burst) and 0 <= row["minute"] - options.minutes / 2 < options.burst / 60


def _row(flow: EmbeddedFlow, some: Sent, started: float) -> dict[str, Any]:
    deadline = time.monotonic() + _WAIT_S
    study: dict[str, Any] = {}
    while study.get("state") not in ("delivered", "failed", "skipped", "parked") and time.monotonic() < deadline:
        study = study_of(flow, some.uid)
        time.sleep(0.05)
    row: dict[str, Any] = {"burst": some.burst, "minute": round((some.at - started) / 60, 3), "seconds": None}
    if study.get("state") == "delivered":
        row["hops"] = hops(study, some.at)
        row["seconds"] = round(sum(row["hops"].values()), 3)
    return row


if __name__ == "__main__":
    main()
