"""Events: CloudEvents 1.0, JSON, structured mode; validated when made and when read."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipeline import schemas
from pipeline.clock import iso, parse_iso
from pipeline.errors import InvalidEvent
from pipeline.tracing import current_traceparent

STUDY_OPENED = "imaging.study.opened.v1"
STUDY_COMPLETED = "imaging.study.completed.v1"
STUDY_SKIPPED = "imaging.study.skipped.v1"
REPORT_REQUESTED = "imaging.report.requested.v1"
REPORT_STARTED = "imaging.report.started.v1"
REPORT_GENERATED = "imaging.report.generated.v1"
REPORT_FAILED = "imaging.report.failed.v1"
REPORT_DELIVERED = "imaging.report.delivered.v1"
REPORT_REJECTED = "imaging.report.rejected.v1"
DICOM_REFUSED = "imaging.dicom.refused.v1"
DEAD_LETTER = "imaging.deadletter.v1"

TOPICS: tuple[str, ...] = (
    STUDY_OPENED,
    STUDY_COMPLETED,
    STUDY_SKIPPED,
    REPORT_REQUESTED,
    REPORT_STARTED,
    REPORT_GENERATED,
    REPORT_FAILED,
    REPORT_DELIVERED,
    REPORT_REJECTED,
    DICOM_REFUSED,
)
"""One topic per event type, of the same name."""

DEAD_LETTER_SUFFIX = ".dlq"

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""Largest event; a study of some thousand instances makes one of more than Kafka's default of 1 MiB."""


def dead_letter_topic(topic: str) -> str:
    """The topic where events of `topic` go that no attempt could handle."""
    return topic + DEAD_LETTER_SUFFIX


ALL_TOPICS: tuple[str, ...] = TOPICS + tuple(dead_letter_topic(topic) for topic in TOPICS)


def correlation_id(study_instance_uid: str, study_version: int) -> str:
    """What ties all events of one version of one study together."""
    return f"{study_instance_uid}#{study_version}"


@dataclass(frozen=True)
class Event:
    """One immutable fact. `subject` is the StudyInstanceUID (of a refusal: the sender) and the partition key."""

    type: str
    source: str
    subject: str
    correlationid: str
    time: datetime
    data: Mapping[str, Any]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    traceparent: str = field(default_factory=current_traceparent)

    def __post_init__(self) -> None:
        schemas.check_data(self.type, self.data)

    @property
    def topic(self) -> str:
        """Where it is published."""
        return self.type

    @property
    def key(self) -> str:
        """Partition key: all events of one study, or refusals of one sender, keep their order."""
        return self.subject

    def to_bytes(self) -> bytes:
        """The structured-mode JSON of the event (UTF-8)."""
        return json.dumps(
            {
                "specversion": "1.0",
                "id": self.id,
                "source": self.source,
                "type": self.type,
                "subject": self.subject,
                "time": iso(self.time),
                "datacontenttype": "application/json",
                "correlationid": self.correlationid,
                "traceparent": self.traceparent,
                "data": self.data,
            },
            ensure_ascii=False,
            allow_nan=False,
            separators=(",", ":"),
        ).encode()

    @classmethod
    def from_bytes(cls, payload: bytes) -> Event:
        """Read and validate; raises `InvalidEvent` with a code for each way it can be wrong."""
        try:
            document = json.loads(payload, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets
            raise InvalidEvent("not_json", "the payload is not JSON") from error
        schemas.check_envelope(document)
        try:
            time = parse_iso(document["time"])
        except ValueError as error:  # a leap second, say: right in RFC 3339, unknown to Python
            raise InvalidEvent("not_cloudevents", "at time: not a time of the calendar") from error
        return cls(
            type=document["type"],
            source=document["source"],
            subject=document["subject"],
            correlationid=document["correlationid"],
            time=time,
            data=document["data"],
            id=document["id"],
            traceparent=document["traceparent"],
        )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON, although Python reads and writes it")


def study_event(
    type_: str, source: str, study_instance_uid: str, study_version: int, now: datetime, data: Mapping[str, Any]
) -> Event:
    """An event about one version of one study; adds the two identifying fields to `data`."""
    return Event(
        type=type_,
        source=source,
        subject=study_instance_uid,
        correlationid=correlation_id(study_instance_uid, study_version),
        time=now,
        data={"study_instance_uid": study_instance_uid, "study_version": study_version, **data},
    )
