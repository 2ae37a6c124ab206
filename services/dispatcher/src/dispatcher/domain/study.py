"""What the rules need to know of a study: its headers, as far as they matter, without who the patient is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any


@dataclass(frozen=True)
class Image:
    """What the rules need to know of one instance; blanks are empty strings or None."""

    sop_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    object_ref: str
    sha256: str
    modality: str
    body_part_examined: str
    view_position: str
    series_description: str
    protocol_name: str
    image_type: tuple[str, ...]
    rows: int | None
    columns: int | None
    number_of_frames: int | None
    has_pixel_data: bool
    burned_in_annotation: bool
    acquired_at: str
    instance_number: int | None

    def reference(self) -> dict[str, str | None]:
        """The image as `imaging.report.requested` names it."""
        return {
            "sop_instance_uid": self.sop_instance_uid,
            "series_instance_uid": self.series_instance_uid,
            "object_ref": self.object_ref,
            "sha256": self.sha256,
            "view_position": self.view_position or None,
        }


@dataclass(frozen=True)
class Study:
    """What the rules need to know of one version of a study."""

    study_description: str
    procedure_meaning: str
    procedure_code: str
    patient_age: str
    birth_date: date | None
    taken_on: date
    received_on: date
    calling_ae_titles: tuple[str, ...]
    called_ae_title: str
    images: tuple[Image, ...]
    fetched_as_prior: bool = False


def study_of(data: Mapping[str, Any]) -> Study:
    """The data of an `imaging.study.completed` event as the rules see it."""
    patient, code = data["patient"], data["order"]["procedure_code"]
    taken, received = data["study_started_at"] or "", date.fromisoformat(data["first_received_at"][:10])
    return Study(
        study_description=data["study_description"] or "",
        procedure_meaning=(code or {}).get("meaning") or "",
        procedure_code=(code or {}).get("value") or "",
        patient_age=patient["patient_age"] or "",
        birth_date=_date(patient["patient_birth_date"]),
        taken_on=_date(taken[:10]) or received,
        received_on=received,
        calling_ae_titles=tuple(data["calling_ae_titles"]),
        called_ae_title=data["called_ae_title"],
        images=tuple(_image_of(instance) for instance in data["instances"]),
        fetched_as_prior=data.get("fetched_as_prior", False),
    )


def _image_of(data: Mapping[str, Any]) -> Image:
    return Image(
        sop_instance_uid=data["sop_instance_uid"],
        series_instance_uid=data["series_instance_uid"],
        sop_class_uid=data["sop_class_uid"],
        object_ref=data["object_ref"],
        sha256=data["sha256"],
        modality=(data["modality"] or "").strip().upper(),
        body_part_examined=data["body_part_examined"] or "",
        view_position=(data["view_position"] or "").strip(),
        series_description=data["series_description"] or "",
        protocol_name=data["protocol_name"] or "",
        image_type=tuple(part.strip().upper() for part in data["image_type"]),
        rows=data["rows"],
        columns=data["columns"],
        number_of_frames=data["number_of_frames"],
        has_pixel_data=data["has_pixel_data"],
        burned_in_annotation=(data["burned_in_annotation"] or "").strip().upper() == "YES",
        acquired_at=data["acquired_at"] or "",
        instance_number=data["instance_number"],
    )


def _date(text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        return None
