"""Events and other raw material for tests of the FHIR writer: invented patients, invented reports."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from fhir_writer.domain.resources import Site
from fhir_writer.domain.study import Draft, StudyFacts, draft_report, kept_study_data, study_facts
from pipeline.events import REPORT_GENERATED, STUDY_COMPLETED, STUDY_SKIPPED, Event, study_event

NOW = datetime(2026, 1, 5, 8, 0, 31, tzinfo=UTC)
SITE = Site("Test radiology", "preliminary", ZoneInfo("Europe/Berlin"), "DEVAST", None)


def new_uid() -> str:
    """A UID nobody has used (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid4().int}"


def instance(view: str | None = "PA", **other: Any) -> dict[str, Any]:
    return {
        "sop_instance_uid": new_uid(),
        "series_instance_uid": new_uid(),
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.1",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "object_ref": "objects/00/aa.dcm",
        "sha256": "0" * 64,
        "size_bytes": 10,
        "received_at": "2026-01-05T08:00:00.000000Z",
        "modality": "DX",
        "body_part_examined": "CHEST",
        "view_position": view,
        "image_laterality": None,
        "series_description": None,
        "protocol_name": None,
        "image_type": ["ORIGINAL", "PRIMARY"],
        "photometric_interpretation": "MONOCHROME2",
        "rows": 8,
        "columns": 8,
        "number_of_frames": 1,
        "has_pixel_data": True,
        "burned_in_annotation": None,
        "instance_number": 1,
        "acquired_at": None,
    } | other


def completed(
    uid: str,
    version: int = 1,
    *,
    mrn: str | None = "MRN-1",
    issuer: str | None = None,
    born: str | None = "1960-02-29",
    sex: str | None = "F",
    accession: str | None = "EX-0001",
    procedure: dict[str, Any] | None = None,
    started: str | None = "2026-01-05T07:58:30",
    views: tuple[str | None, ...] = ("PA",),
    description: str | None = "Chest",
) -> Event:
    return study_event(
        STUDY_COMPLETED,
        "/test",
        uid,
        version,
        NOW,
        {
            "reason": "quiet_period",
            "patient": {
                "patient_id": mrn,
                "issuer_of_patient_id": issuer,
                "patient_name": "PHANTOM^ONE",
                "patient_birth_date": born,
                "patient_sex": sex,
                "patient_age": None,
            },
            "order": {
                "accession_number": accession,
                "issuer_of_accession_number": None,
                "requested_procedure_id": None,
                "placer_order_number": None,
                "procedure_code": procedure,
            },
            "study_id": "1",
            "study_description": description,
            "study_started_at": started,
            "institution_name": None,
            "calling_ae_titles": ["PACS"],
            "called_ae_title": "ECHO",
            "instances": [instance(view) for view in views],
            "first_received_at": "2026-01-05T08:00:00.000000Z",
            "last_received_at": "2026-01-05T08:00:00.000000Z",
        },
    )


def found(name: str, state: str = "absent", side: str | None = None, sentence: str | None = None) -> dict[str, Any]:
    return {
        "finding": name,
        "state": state,
        "laterality": side,
        "confidence": 0.93,
        "sentence": sentence or f"{name.replace('_', ' ')}: {state}.",
    }


DEFAULT_FINDINGS = (found("pneumothorax"), found("pleural_effusion", "present", "left"), found("nodule", "uncertain"))


def generated(
    uid: str,
    version: int = 1,
    *,
    job_id: str | None = None,
    findings: str = "There is a small left pleural effusion. No pneumothorax.",
    impression: str = "Small left pleural effusion.",
    structured: tuple[dict[str, Any], ...] = DEFAULT_FINDINGS,
    flags: tuple[str, ...] = (),
    notices: tuple[str, ...] = (),
    unsure: tuple[str, ...] = (),
    model: tuple[str, str] = ("echo-phantom-demo", "0a1b2c3d"),
) -> Event:
    sentences = [{"section": "impression", "text": impression, "confidence": 0.9, "flags": []}]
    sentences += [
        {"section": "findings", "text": text, "confidence": 0.2, "flags": ["low_confidence"]} for text in unsure
    ]
    return study_event(
        REPORT_GENERATED,
        "/test",
        uid,
        version,
        NOW,
        {
            "job_id": job_id or str(uuid.uuid5(uuid.NAMESPACE_OID, f"{uid}#{version}")),
            "attempt": 1,
            "model": {"id": model[0], "version": model[1]},
            "text": f"Findings: {findings} Impression: {impression}",
            "findings": findings,
            "impression": impression,
            "sentences": sentences,
            "flags": list(flags),
            "notices": list(notices),
            "structured_findings": list(structured),
            "images": [{"sop_instance_uid": new_uid(), "series_instance_uid": new_uid()}],
            "timings": {"queue_s": 0, "pixels_s": 0, "generate_s": 0, "total_s": 0},
            "tokens": {"generated": 1, "forward_passes": 1, "tokens_per_forward": 1.0},
            "out_of_domain_score": None,
        },
    )


def skipped(uid: str, version: int = 2, *, held: bool = False) -> Event:
    reason = {"code": "not_chest", "text": "No image of the chest."}
    data = {"reason": reason, "evidence": [], "person_must_act": held}
    return study_event(STUDY_SKIPPED, "/test", uid, version, NOW, data)


def facts(**what: Any) -> StudyFacts:
    return study_facts(kept_study_data(completed(what.pop("uid", None) or new_uid(), **what).data))


def draft(**what: Any) -> Draft:
    event = generated(what.pop("uid", None) or new_uid(), **what)
    return draft_report(event.data, event.time)


def patient(mrn: str, system: str, **other: Any) -> dict[str, Any]:
    return {
        "resourceType": "Patient",
        "identifier": [{"system": system, "value": mrn}],
        "gender": "female",
        "birthDate": "1960-02-29",
        "name": [{"family": "PHANTOM", "given": ["ONE"]}],
    } | other
