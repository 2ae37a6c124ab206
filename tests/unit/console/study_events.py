"""Events of invented studies, made from the golden examples."""

from __future__ import annotations

import base64
import copy
import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.clock import iso
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
    Event,
    study_event,
)

EXAMPLES = Path(__file__).parents[3] / "schemas" / "examples"
START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
_SOURCE = {
    STUDY_OPENED: "/dicom_listener", STUDY_COMPLETED: "/dicom_listener", STUDY_SKIPPED: "/dispatcher",
    REPORT_REQUESTED: "/dispatcher", REPORT_STARTED: "/inference_worker", REPORT_GENERATED: "/inference_worker",
    REPORT_FAILED: "/inference_worker", REPORT_DELIVERED: "/fhir_writer", REPORT_REJECTED: "/fhir_writer",
}  # fmt: skip


def example(type_: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((EXAMPLES / f"{type_}.json").read_text())["data"]
    return data


class StudyEvents:
    """Makes the events of one study; each is a second later than the one before."""

    def __init__(
        self,
        number: int = 1,
        *,
        uid: str | None = None,
        accession: str | None = None,
        patient_id: str | None = None,
        start: datetime = START,
    ) -> None:
        self.uid = uid or f"2.25.{10**30 + number}"
        self.accession = accession or f"EX-{number:04d}"
        self.patient_id = patient_id or f"PHANTOM-{number}"
        self.at = start
        self.sop_instance_uid = f"{self.uid}.1"

    def _event(self, type_: str, version: int, changes: dict[str, Any], source: str | None = None) -> Event:
        data = copy.deepcopy(example(type_)) | changes
        self.at += timedelta(seconds=1)
        return study_event(type_, source or _SOURCE[type_], self.uid, version, self.at, _without_ids(data))

    def opened(self, version: int = 1, **changes: Any) -> Event:
        told = {
            "accession_number": self.accession,
            "patient_id": self.patient_id,
            "received_at": iso(self.at),
            "reason": "new" if version == 1 else "late_instance",
        }
        return self._event(STUDY_OPENED, version, told | changes)

    def completed(self, version: int = 1, instances: list[dict[str, Any]] | None = None, **changes: Any) -> Event:
        data = example(STUDY_COMPLETED)
        data["patient"]["patient_id"] = self.patient_id
        data["order"]["accession_number"] = self.accession
        data["instances"][0]["sop_instance_uid"] = self.sop_instance_uid
        data["first_received_at"] = data["last_received_at"] = iso(self.at)
        if instances is not None:
            data["instances"] = [data["instances"][0] | instance for instance in instances]
        return self._event(STUDY_COMPLETED, version, data | changes)

    def skipped(self, version: int = 1) -> Event:
        return self._event(STUDY_SKIPPED, version, {})

    def held(self, version: int = 1) -> Event:
        reason = {"code": "view_unknown", "text": "Nothing in the headers says that a view is frontal."}
        told = {"reason": reason, "person_must_act": True, "evidence": ["chest_by_study_description"]}
        return self._event(STUDY_SKIPPED, version, told)

    def requested(self, version: int = 1, attempt: int = 1) -> Event:
        images = example(REPORT_REQUESTED)["images"]
        images[0]["sop_instance_uid"] = self.sop_instance_uid
        return self._event(REPORT_REQUESTED, version, {"attempt": attempt, "images": images})

    def started(self, version: int = 1, attempt: int = 1) -> Event:
        return self._event(REPORT_STARTED, version, {"attempt": attempt})

    def generated(self, version: int = 1, **changes: Any) -> Event:
        return self._event(REPORT_GENERATED, version, {"flags": [], "notices": []} | changes)

    def failed(self, version: int = 1, attempt: int = 1, *, retryable: bool = False) -> Event:
        return self._event(REPORT_FAILED, version, {"attempt": attempt, "retryable": retryable})

    def delivered(self, version: int = 1, **changes: Any) -> Event:
        return self._event(REPORT_DELIVERED, version, {"resource_version": str(version)} | changes)

    def parked(self, version: int = 1) -> Event:
        return self._event(REPORT_REJECTED, version, {})

    def ehr_unavailable(self, version: int = 1) -> Event:
        reason = {"code": "ehr_unavailable", "text": "The FHIR server does not answer."}
        told = {"reason": reason, "person_must_act": False, "next_attempt_at": iso(self.at + timedelta(minutes=1))}
        return self._event(REPORT_REJECTED, version, told)

    def dead_letter(self, topic: str, consumer: str, value: bytes = b"{}") -> Event:
        self.at += timedelta(seconds=1)
        data = example(DEAD_LETTER) | {
            "topic": topic,
            "consumer": consumer,
            "key": self.uid,
            "value_base64": base64.b64encode(value).decode(),
        }
        return Event(DEAD_LETTER, f"/{consumer}", self.uid, f"{topic}/0/7", self.at, data, id=str(uuid.uuid4()))

    def all_delivered(self, version: int = 1, **report: Any) -> list[Event]:
        return [
            self.opened(version), self.completed(version), self.requested(version), self.started(version),
            self.generated(version, **report), self.delivered(version),
        ]  # fmt: skip


def _without_ids(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name not in ("study_instance_uid", "study_version")}
