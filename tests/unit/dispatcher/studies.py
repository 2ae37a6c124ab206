"""Study events for the dispatcher's tests, each field replaceable."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from pipeline.events import STUDY_COMPLETED, Event, study_event

NOW = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
DX = "1.2.840.10008.5.1.4.1.1.1.1"


def new_uid() -> str:
    return f"2.25.{uuid.uuid4().int}"


def instance(**changes: Any) -> dict[str, Any]:
    """A well-described frontal chest radiograph, with changes."""
    return {
        "sop_instance_uid": new_uid(),
        "series_instance_uid": new_uid(),
        "sop_class_uid": DX,
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "object_ref": "objects/aa/bb/" + uuid.uuid4().hex,
        "sha256": "0" * 64,
        "size_bytes": 1,
        "received_at": "2026-01-05T08:00:00Z",
        "modality": "DX",
        "body_part_examined": "CHEST",
        "view_position": "PA",
        "image_laterality": None,
        "series_description": None,
        "protocol_name": None,
        "image_type": ["ORIGINAL", "PRIMARY"],
        "photometric_interpretation": "MONOCHROME2",
        "rows": 64,
        "columns": 64,
        "number_of_frames": 1,
        "has_pixel_data": True,
        "burned_in_annotation": None,
        "instance_number": None,
        "acquired_at": None,
    } | changes


def study_data(*instances: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A completed study's data; `age`, `born`, `description`, `callers` ... stand for what is nested."""
    procedure, code = changes.get("procedure"), changes.get("procedure_code")
    return {
        "reason": "quiet_period",
        "patient": {
            "patient_id": "PHANTOM-1",
            "issuer_of_patient_id": None,
            "patient_name": None,
            "patient_birth_date": changes.get("born"),
            "patient_sex": None,
            "patient_age": changes.get("age"),
        },
        "order": {
            "accession_number": "EX-1",
            "issuer_of_accession_number": None,
            "requested_procedure_id": None,
            "placer_order_number": None,
            "procedure_code": {"value": code or "X", "scheme": None, "meaning": procedure}
            if procedure or code
            else None,
        },
        "study_id": None,
        "study_description": changes.get("description"),
        "study_started_at": changes.get("taken", "2026-01-05T07:58:30"),
        "institution_name": None,
        "calling_ae_titles": changes.get("callers", ["PACS"]),
        "called_ae_title": changes.get("called", "ECHO"),
        "instances": list(instances) or [instance()],
        "first_received_at": "2026-01-05T08:00:00Z",
        "last_received_at": "2026-01-05T08:00:00Z",
    }


def completed(uid: str, *instances: dict[str, Any], version: int = 1, **changes: Any) -> Event:
    """A completed study as an event."""
    return study_event(STUDY_COMPLETED, "/dicom_listener", uid, version, NOW, study_data(*instances, **changes))
