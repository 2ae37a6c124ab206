"""What the console keeps of each event. A study's state is computed from the set of its facts, never from their order:
events of one study arrive on different topics, and between topics no order is guaranteed."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.clock import parse_iso
from pipeline.events import (
    DEAD_LETTER,
    REPORT_GENERATED,
    REPORT_REQUESTED,
    STUDY_COMPLETED,
    Event,
)

_MOST_VERSIONS = 2**31 - 1  # as large as the database's integers


@dataclass(frozen=True)
class Fact:
    """One event about one study, without what nobody asks for later.

    `version` is None only for a dead letter whose event could not be read.
    """

    event_id: str
    study_instance_uid: str
    version: int | None
    type: str
    source: str
    at: datetime
    data: Mapping[str, Any]

    @property
    def order(self) -> tuple[datetime, str]:
        """A total order that does not depend on arrival."""
        return (self.at, self.event_id)


@dataclass(frozen=True)
class Image:
    """One stored DICOM object of a study and where its bytes are."""

    study_instance_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    version: int
    object_ref: str
    sha256: str
    size_bytes: int
    modality: str | None
    view_position: str | None
    photometric_interpretation: str | None
    rows: int | None
    columns: int | None
    has_pixel_data: bool
    instance_number: int | None


@dataclass(frozen=True)
class DeadLetter:
    """An event that some consumer gave up. The event itself stays in its dead-letter topic: it may name a patient."""

    event_id: str
    at: datetime
    topic: str
    partition: int
    offset: int
    key: str
    consumer: str
    error_code: str
    error_message: str
    attempts: int


@dataclass(frozen=True)
class WireRefusal:
    """A sender was told no by the DICOM listener; `count` times the same between `first_at` and `at`."""

    event_id: str
    at: datetime
    first_at: datetime
    scope: str
    reason_code: str
    reason_text: str
    status: str | None
    calling_ae_title: str
    called_ae_title: str
    address: str
    accession_number: str | None
    count: int


def fact_of(event: Event) -> Fact:
    """The fact that an event states."""
    if event.type == DEAD_LETTER:
        version = _version_inside(event.data["value_base64"])
        kept = ("topic", "consumer", "error_code", "error_message", "attempts")
        data: Mapping[str, Any] = {name: event.data[name] for name in kept}
        uid = event.data["key"]
    else:
        version, uid = event.data["study_version"], event.data["study_instance_uid"]
        data = _condensed(event)
    return Fact(event.id, uid, version, event.type, event.source, event.time, data)


def images_of(event: Event) -> list[Image]:
    """The objects that a completed study lists."""
    if event.type != STUDY_COMPLETED:
        return []
    return [
        Image(
            study_instance_uid=event.data["study_instance_uid"],
            sop_instance_uid=instance["sop_instance_uid"],
            series_instance_uid=instance["series_instance_uid"],
            version=event.data["study_version"],
            object_ref=instance["object_ref"],
            sha256=instance["sha256"],
            size_bytes=instance["size_bytes"],
            modality=instance["modality"],
            view_position=instance["view_position"],
            photometric_interpretation=instance["photometric_interpretation"],
            rows=instance["rows"],
            columns=instance["columns"],
            has_pixel_data=instance["has_pixel_data"],
            instance_number=instance["instance_number"],
        )
        for instance in event.data["instances"]
    ]


def dead_letter_of(event: Event) -> DeadLetter:
    """The dead letter that an event of the `.dlq` topics carries."""
    data = event.data
    return DeadLetter(
        event_id=event.id,
        at=event.time,
        topic=data["topic"],
        partition=data["partition"],
        offset=data["offset"],
        key=data["key"],
        consumer=data["consumer"],
        error_code=data["error_code"],
        error_message=data["error_message"],
        attempts=data["attempts"],
    )


def refusal_of(event: Event) -> WireRefusal:
    """The refusal that an event of the listener tells of."""
    data = event.data
    return WireRefusal(
        event_id=event.id,
        at=parse_iso(data["last_at"]),
        first_at=parse_iso(data["first_at"]),
        scope=data["scope"],
        reason_code=data["reason"]["code"],
        reason_text=data["reason"]["text"],
        status=data["status"],
        calling_ae_title=data["calling_ae_title"],
        called_ae_title=data["called_ae_title"],
        address=data["address"],
        accession_number=data["accession_number"],
        count=data["count"],
    )


def moment(text: str | None) -> datetime | None:
    """The time of an RFC 3339 text, or None."""
    return None if text is None else parse_iso(text)


def _condensed(event: Event) -> Mapping[str, Any]:
    data = {k: v for k, v in event.data.items() if k not in ("study_instance_uid", "study_version")}
    if event.type == STUDY_COMPLETED:
        return {
            "reason": data["reason"],
            "patient_id": data["patient"]["patient_id"],
            "accession_number": data["order"]["accession_number"],
            "study_description": data["study_description"],
            "study_started_at": data["study_started_at"],
            "calling_ae_titles": data["calling_ae_titles"],
            "first_received_at": data["first_received_at"],
            "last_received_at": data["last_received_at"],
            "image_count": len(data["instances"]),
            "modalities": sorted({i["modality"] for i in data["instances"] if i["modality"]}),
        }
    if event.type == REPORT_REQUESTED:
        data["images"] = [image["sop_instance_uid"] for image in data["images"]]
    elif event.type == REPORT_GENERATED:
        del data["text"]  # findings and impression say the same
    return data


def _version_inside(value_base64: str) -> int | None:
    try:
        version = json.loads(base64.b64decode(value_base64))["data"]["study_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # whatever was buried is not an event that names a version
    return version if type(version) is int and 1 <= version <= _MOST_VERSIONS else None
