"""What is to hold after chaos, read from the services' databases, the console and the EHR; and the picture of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import redis
import sqlalchemy as sa
from chaos_load import NO_ANSWER, Sent

from e2e.flow import ClusterFlow, reports_of, study_of
from pipeline.taskqueue import QUEUES

DELIVERED = "imaging.report.delivered.v1"
UNFINISHED = {
    "studies that are open": ("dicom_listener", "SELECT count(*) FROM studies WHERE state = 'open'"),
    "jobs in no final state": ("dispatcher", "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')"),
    "tasks not handed over": ("dispatcher", "SELECT count(*) FROM task_outbox"),
    "deliveries pending or parked": ("fhir_writer", "SELECT count(*) FROM deliveries WHERE state <> 'delivered'"),
    **{
        f"events not published by {service}": (service, "SELECT count(*) FROM outbox WHERE published_at IS NULL")
        for service in ("dicom_listener", "dispatcher", "fhir_writer")
    },
}


@dataclass(frozen=True)
class Outcome:
    """A study at the end: at the listener, in the console and at the EHR."""

    indexed: frozenset[str] = frozenset()
    version: int = 0
    completed_at: float = 0.0
    state: str = "unknown"
    delivered_version: int = 0
    delivered_at: Sequence[float] = ()
    fhir_version: str = ""
    reports: Sequence[tuple[str, float]] = ()
    """Version id and time of writing of each DiagnosticReport at the EHR."""


def faults_of(sent: Sent, outcome: Outcome) -> list[str]:
    """What is wrong with a study of which at least one object was acknowledged; nothing, if all is well."""
    wrong = []
    if not outcome.reports or not set(sent.acknowledged) <= outcome.indexed:
        wrong.append("lost")
    if len(outcome.reports) > 1:
        wrong.append("duplicated")
    if len(outcome.reports) == 1:
        (version_id, written_at) = outcome.reports[0]
        current = outcome.delivered_version == outcome.version and version_id == outcome.fhir_version
        if not current or written_at < outcome.completed_at:
            wrong.append("not of the last version")
    if outcome.state != "delivered":
        wrong.append(f"in state {outcome.state}")
    return wrong


def told(status: int) -> bool:
    """Whether a sender that saw this knows that it must try again: a refusal, or no answer at all."""
    return status == NO_ANSWER or status >> 12 in (0xA, 0xC) or status in (0x0110, 0x0117, 0x0122, 0x0124)


def seconds(text: str) -> float:
    """An ISO 8601 time as seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


def versions(flow: ClusterFlow) -> dict[str, tuple[int, bool, float]]:
    """Last version of each study, whether it is complete, and since when."""
    asked = "SELECT study_instance_uid, version, state, completed_at FROM studies"
    with flow.database("dicom_listener") as connection:
        rows = connection.execute(sa.text(asked)).all()
    return {row[0]: (row[1], row[2] == "complete", 0.0 if row[3] is None else row[3].timestamp()) for row in rows}


def is_final(study: Mapping[str, Any], version: int) -> bool:
    """Whether the console has seen the delivery of this version."""
    return study.get("state") == "delivered" and study["fhir"]["version"] == version == study["version"]


def outcomes(flow: ClusterFlow, sent: Sequence[Sent]) -> dict[str, Outcome]:
    """Of every study."""
    known = versions(flow)
    indexed: dict[str, set[str]] = {}
    with flow.database("dicom_listener") as connection:
        asked = "SELECT study_instance_uid, sop_instance_uid FROM instances WHERE valid AND study_version IS NOT NULL"
        for uid, sop_instance_uid in connection.execute(sa.text(asked)):
            indexed.setdefault(uid, set()).add(sop_instance_uid)
    found = {}
    for some in sent:
        version, _, completed_at = known.get(some.uid, (0, False, 0.0))
        study = study_of(flow, some.uid)
        fhir = study.get("fhir") or {}
        found[some.uid] = Outcome(
            indexed=frozenset(indexed.get(some.uid, ())),
            version=version,
            completed_at=completed_at,
            state=study.get("state", "unknown"),
            delivered_version=fhir.get("version", 0),
            delivered_at=[seconds(step["at"]) for step in study.get("timeline", ()) if step["event"] == DELIVERED],
            fhir_version=fhir.get("version_id", ""),
            reports=[
                (report["meta"]["versionId"], seconds(report["issued"])) for report in reports_of(flow, some.patient_id)
            ],
        )
    return found


def unfinished(flow: ClusterFlow, redis_url: str) -> dict[str, int]:
    """What still waits in the services and in the task queue; empty when all is done."""
    counts = {}
    for words, (service, query) in UNFINISHED.items():
        with flow.database(service) as connection:
            counts[words] = int(connection.execute(sa.text(query)).scalar_one())
    with redis.Redis.from_url(redis_url) as database:
        counts["tasks in the queue"] = sum(int(database.llen(queue)) for queue in QUEUES.values())
        counts["tasks not acknowledged"] = int(database.hlen("unacked"))
    return {words: count for words, count in counts.items() if count}


def processes_of(prefix: str) -> list[int]:
    """Processes that carry the run's topic prefix in their environment, and so are its own."""
    mark, found = f"ECHO_BUS_TOPIC_PREFIX={prefix}\0".encode(), []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in file.read_bytes() and int(file.parent.name) != os.getpid():
                found.append(int(file.parent.name))
        except OSError:
            continue  # it ended, or belongs to somebody else
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and largest."""
    ordered = sorted(values) or [0.0]
    return {
        "median": round(ordered[len(ordered) // 2], 1),
        "p95": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))], 1),
        "max": round(ordered[-1], 1),
    }


def written(result: Mapping[str, Any], file: Path) -> None:
    """As JSON, with one line for each fault and study."""
    parts = []
    for key, value in result.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(f"    {json.dumps(entry)}" for entry in value) + "\n  ]"
        parts.append(f'  "{key}": {text}')
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


_COLOURS = {
    "kill": "#b5534a",
    "stop": "#d98e32",
    "cut": "#1b6ca8",
    "flush": "#7b5ea7",
    "fill": "#5a9367",
    "mute": "#888888",
}
_WORDS = {
    "kill": "killed",
    "stop": "stopped",
    "cut": "cut off",
    "flush": "flushed",
    "fill": "disk full",
    "mute": "silent",
}


def plot(result: Mapping[str, Any], file: Path) -> None:
    """Write a PNG: the faults on a lane a kind, studies acknowledged and reported, and how long each report took."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    lanes, counts, latency = figure.subplots(3, 1, sharex=True, height_ratios=[2.2, 2, 2])
    drawn = {fault["kind"] for fault in result["faults"]}
    shown = {kind: text for kind, text in _WORDS.items() if kind != "mute" or kind in drawn}
    for lane, kind in enumerate(shown):
        some = [fault for fault in result["faults"] if fault["kind"] == kind]
        bars = [(fault["at_s"] / 60, max(fault["lasted_s"], 1.0) / 60) for fault in some]
        lanes.broken_barh(bars, (-lane - 0.32, 0.64), color=_COLOURS[kind], alpha=0.75)
        for fault in some:
            lanes.text(fault["at_s"] / 60, -lane + 0.34, fault["target"][:4], fontsize=5, rotation=35)
    lanes.set_yticks([-lane for lane in range(len(shown))], list(shown.values()), fontsize=8)
    lanes.set_ylim(0.5 - len(shown), 0.9)
    lanes.set_title(f"{result['minutes']:g} minutes of chaos, seed {result['seed']}", fontsize=10, loc="left")
    studies = result["studies"]
    for key, words, colour in (
        ("first_acknowledged_s", "acknowledged", "#333333"),
        ("first_reported_s", "reported", "#1b6ca8"),
    ):
        times = sorted(study[key] / 60 for study in studies if study[key] is not None)
        counts.step([0, *times], range(len(times) + 1), where="post", label=words, color=colour, linewidth=1.2)
    counts.set_ylabel("studies", fontsize=8)
    counts.legend(fontsize=8, frameon=False)
    done = [study for study in studies if study["last_reported_s"] is not None]
    latency.scatter(
        [study["last_acknowledged_s"] / 60 for study in done],
        [study["last_reported_s"] - study["last_acknowledged_s"] for study in done],
        s=[14 if study["images"] > 1 else 6 for study in done],
        color="#1b6ca8",
        alpha=0.7,
        linewidths=0,
    )
    latency.set_yscale("log")
    for formats in (latency.yaxis.set_major_formatter, latency.yaxis.set_minor_formatter):
        formats(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    latency.set_ylabel("s from last image to report\n(large: a late image came)", fontsize=8)
    latency.set_xlabel("minutes", fontsize=8)
    for axis in (lanes, counts, latency):
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", color="#dddddd", linewidth=0.7)
    figure.savefig(file, dpi=110)
