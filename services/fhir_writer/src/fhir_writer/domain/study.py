"""What the writer knows of a study and of its draft report, read from the two events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class PatientFacts:
    """The patient as the images name them; dates as YYYY-MM-DD, sex as DICOM M, F, O."""

    patient_id: str | None
    issuer: str | None
    birth_date: str | None
    sex: str | None


@dataclass(frozen=True)
class StudyFacts:
    """One version of a study, as far as a report about it needs."""

    study_instance_uid: str
    patient: PatientFacts
    accession_number: str | None
    procedure: tuple[str, str | None, str | None] | None
    """(value, scheme, meaning)"""
    started_at: str | None
    description: str
    views: tuple[str | None, ...]
    """ViewPosition of each image."""


_KEPT_OF_INSTANCE = ("modality", "view_position", "series_description", "protocol_name", "acquired_at")


def kept_study_data(data: Mapping[str, Any]) -> Json:
    """The part of `imaging.study.completed` that the writer keeps: no object references, no more of the patient."""
    return {
        "study_instance_uid": data["study_instance_uid"],
        "patient": {
            k: data["patient"][k] for k in ("patient_id", "issuer_of_patient_id", "patient_birth_date", "patient_sex")
        },
        "order": {k: data["order"][k] for k in ("accession_number", "procedure_code")},
        "study_description": data["study_description"],
        "study_started_at": data["study_started_at"],
        "instances": [{k: instance[k] for k in _KEPT_OF_INSTANCE} for instance in data["instances"]],
    }


def study_facts(kept: Mapping[str, Any]) -> StudyFacts:
    """Read back what `kept_study_data` kept."""
    patient, order, instances = kept["patient"], kept["order"], kept["instances"]
    procedure = order["procedure_code"]
    code = _line(procedure["value"]) if procedure else ""
    words = [
        kept["study_description"],
        *(i["series_description"] for i in instances),
        *(i["protocol_name"] for i in instances),
    ]
    acquired = sorted(i["acquired_at"] for i in instances if i["acquired_at"])
    return StudyFacts(
        study_instance_uid=kept["study_instance_uid"],
        patient=PatientFacts(
            patient_id=(patient["patient_id"] or "").strip() or None,
            issuer=(patient["issuer_of_patient_id"] or "").strip() or None,
            birth_date=patient["patient_birth_date"],
            sex=patient["patient_sex"],
        ),
        accession_number=clean(order["accession_number"] or "") or None,
        procedure=(code, procedure["scheme"], _line(procedure["meaning"]) or None) if code else None,
        started_at=kept["study_started_at"] or (acquired[0] if acquired else None),
        description=" ".join(word for word in words if word),
        views=tuple(i["view_position"] for i in instances),
    )


@dataclass(frozen=True)
class FindingDraft:
    """One structured finding after entries of the same name were joined."""

    name: str
    state: str
    side: str | None
    confidence: float
    sentence: str


@dataclass(frozen=True)
class Draft:
    """A draft report of the model, with text that FHIR and XHTML can carry."""

    study_version: int
    job_id: str
    model_id: str
    model_version: str
    findings: str
    impression: str
    flags: frozenset[str]
    notices: tuple[str, ...]
    unsure: tuple[str, ...]
    """Sentences that carry a flag of the model."""
    structured: tuple[FindingDraft, ...]
    written_at: datetime


def clean(text: str) -> str:
    """Without the control characters and lone surrogates that JSON, XML and FHIR strings refuse."""
    return "".join(
        c
        for c in text
        if c in "\n\t"
        or (
            ord(c) >= 32
            and not 0x7F <= ord(c) <= 0x9F
            and not 0xD800 <= ord(c) <= 0xDFFF
            and ord(c) not in (0xFFFE, 0xFFFF)
        )
    ).strip()


def _line(text: str | None) -> str:
    """Words with one space between them, as a FHIR code must be."""
    return " ".join(clean(text or "").split())


def draft_report(data: Mapping[str, Any], written_at: datetime) -> Draft:
    """The draft in `imaging.report.generated`, made at `written_at` (the event's time)."""
    return Draft(
        study_version=data["study_version"],
        job_id=data["job_id"],
        model_id=clean(data["model"]["id"]) or "unnamed",
        model_version=clean(data["model"]["version"]) or "unknown",
        findings=clean(data["findings"]),
        impression=clean(data["impression"]),
        flags=frozenset(data["flags"]),
        notices=tuple(text for text in map(clean, data["notices"]) if text),
        unsure=tuple(clean(s["text"]) for s in data["sentences"] if s["flags"] and clean(s["text"])),
        structured=join_findings(data["structured_findings"]),
        written_at=written_at,
    )


_RANK = {"present": 2, "uncertain": 1, "absent": 0}


def join_findings(items: Sequence[Mapping[str, Any]]) -> tuple[FindingDraft, ...]:
    """One entry a finding, by name: the strongest state wins, the sides and sentences behind it are joined."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        by_name.setdefault(item["finding"], []).append(item)
    joined = []
    for name in sorted(by_name):
        strongest = max(_RANK[item["state"]] for item in by_name[name])
        behind = [item for item in by_name[name] if _RANK[item["state"]] == strongest]
        sides = {item["laterality"] for item in behind} - {None}
        sentences = dict.fromkeys(clean(item["sentence"]) for item in behind)
        joined.append(
            FindingDraft(
                name=name,
                state=behind[0]["state"],
                side=None if not sides else sides.pop() if len(sides) == 1 else "both",
                confidence=max(float(item["confidence"]) for item in behind),
                sentence=" ".join(sentence for sentence in sentences if sentence),
            )
        )
    return tuple(joined)


def fhir_datetime(text: str | None, zone: tzinfo) -> str | None:
    """A DICOM-derived ISO 8601 text as a FHIR dateTime: a time without zone is the site's; a date stays a date.

    None for what is no date: a wrong time would be worse than none.
    """
    if not text:
        return None
    try:
        if len(text) == 10:
            return datetime.strptime(text, "%Y-%m-%d").date().isoformat()
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    if (moment.utcoffset() or timedelta()).seconds % 60:  # local mean time of long ago, often a placeholder's date
        return moment.date().isoformat()
    return moment.isoformat(timespec="seconds")
