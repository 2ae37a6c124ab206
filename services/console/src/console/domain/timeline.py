"""The way of a study, hop by hop, in plain words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from console.domain.facts import Fact
from console.domain.state import versions_of
from pipeline.events import (
    DEAD_LETTER,
    REPORT_DELIVERED,
    REPORT_FAILED,
    REPORT_GENERATED,
    REPORT_REJECTED,
    REPORT_REQUESTED,
    REPORT_STARTED,
    STUDY_COMPLETED,
    STUDY_OPENED,
    STUDY_SKIPPED,
    TOPICS,
)


@dataclass(frozen=True)
class Step:
    """One entry of the timeline. `duration_s`: seconds since the step before it in the same version."""

    at: datetime
    version: int
    hop: str
    event: str
    title: str
    detail: str
    duration_s: float | None


_HOP = {
    STUDY_OPENED: "dicom_listener",
    STUDY_COMPLETED: "dicom_listener",
    STUDY_SKIPPED: "dispatcher",
    REPORT_REQUESTED: "dispatcher",
    REPORT_STARTED: "inference_worker",
    REPORT_GENERATED: "inference_worker",
    REPORT_DELIVERED: "fhir_writer",
    REPORT_REJECTED: "fhir_writer",
}
_RANK = {type_: rank for rank, type_ in enumerate((*TOPICS, DEAD_LETTER))}

_WHY_COMPLETE = {
    "quiet_period": "no further image came for the quiet period",
    "association_released": "the sender closed its connection",
    "maximum_age": "it had been open for the longest time allowed",
}


def timeline_of(facts: Collection[Fact]) -> list[Step]:
    """All steps of all versions, oldest first. Steps at the very same time stand in the order of the flow."""
    steps = []
    for version, own in versions_of(facts).items():
        before: datetime | None = None
        for fact in sorted(own, key=lambda fact: (fact.at, _RANK[fact.type], fact.event_id)):
            title, detail = _WORDS[fact.type](fact.data)
            steps.append(
                Step(
                    at=fact.at,
                    version=version,
                    hop=_hop(fact),
                    event=fact.type,
                    title=title,
                    detail=detail,
                    duration_s=None if before is None else (fact.at - before).total_seconds(),
                )
            )
            before = fact.at
    return steps


def _hop(fact: Fact) -> str:
    if fact.type == DEAD_LETTER:
        return str(fact.data["consumer"])
    if fact.type == REPORT_FAILED:  # the worker's own failure, or the dispatcher giving up
        return fact.source.strip("/").split("/")[0] or "inference_worker"
    return _HOP[fact.type]


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _opened(data: Mapping[str, Any]) -> tuple[str, str]:
    late = data["reason"] == "late_instance"
    sender = f"from {data['calling_ae_title']}" if data["calling_ae_title"] else "from a sender without a name"
    return ("A late image arrived" if late else "The first image arrived"), sender


def _completed(data: Mapping[str, Any]) -> tuple[str, str]:
    return "The study counts as complete", f"{_images(data['image_count'])}; {_WHY_COMPLETE[data['reason']]}"


def _skipped(data: Mapping[str, Any]) -> tuple[str, str]:
    title = "Parked: a person decides" if data.get("person_must_act") else "No report is made"
    return title, data["reason"]["text"] + _headers(data)


def _requested(data: Mapping[str, Any]) -> tuple[str, str]:
    again = data["attempt"] > 1
    urgency = "urgent" if data["priority"] == "stat" else "routine"
    detail = f"{_images(len(data['images']))} for the model, {urgency}" + (
        f", attempt {data['attempt']}" if again else ""
    )
    assumed = data.get("assumed") or []
    doubts = f". Taken for granted: {_codes(assumed)}." if assumed else ""
    return ("Queued again" if again else "Queued for the model"), f"{detail}{doubts}{_headers(data)}"


def _headers(data: Mapping[str, Any]) -> str:
    """What the headers said, in a sentence; empty where nobody told."""
    return f" Headers say: {_codes(data['evidence'])}." if data.get("evidence") else ""


def _codes(codes: Collection[str]) -> str:
    return ", ".join(code.replace("_", " ") for code in codes)


def _started(data: Mapping[str, Any]) -> tuple[str, str]:
    return "A worker took it", f"{data['worker']}, attempt {data['attempt']}"


def _generated(data: Mapping[str, Any]) -> tuple[str, str]:
    timings = data["timings"]
    return "The draft was written", (
        f"by {data['model']['id']} in {timings['total_s']:.1f} s "
        f"(reading the pixels {timings['pixels_s']:.1f} s, writing {timings['generate_s']:.1f} s)"
    )


def _failed(data: Mapping[str, Any]) -> tuple[str, str]:
    again = " Another attempt follows." if data["retryable"] else ""
    return f"Attempt {data['attempt']} failed", f"{data['error_text']}{again}"


def _delivered(data: Mapping[str, Any]) -> tuple[str, str]:
    what = {"created": "new", "updated": "updated", "unchanged": "it stood there already"}[data["result"]]
    return (
        "Delivered to the EHR",
        f"{data['resource_type']}/{data['resource_id']} version {data['resource_version']}, {what}",
    )


def _rejected(data: Mapping[str, Any]) -> tuple[str, str]:
    if data["person_must_act"]:
        return "Parked: a person must act", data["reason"]["text"]
    return "Not delivered yet; it is tried again", data["reason"]["text"]


def _buried(data: Mapping[str, Any]) -> tuple[str, str]:
    return "An event was given up", (
        f"{data['topic']} after {data['attempts']} {'attempt' if data['attempts'] == 1 else 'attempts'}: "
        f"{data['error_code']} ({data['error_message']})"
    )


_WORDS: Mapping[str, Callable[[Mapping[str, Any]], tuple[str, str]]] = {
    STUDY_OPENED: _opened,
    STUDY_COMPLETED: _completed,
    STUDY_SKIPPED: _skipped,
    REPORT_REQUESTED: _requested,
    REPORT_STARTED: _started,
    REPORT_GENERATED: _generated,
    REPORT_FAILED: _failed,
    REPORT_DELIVERED: _delivered,
    REPORT_REJECTED: _rejected,
    DEAD_LETTER: _buried,
}
