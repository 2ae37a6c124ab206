"""The FHIR R4 resources of one report, each built as a dictionary and passed through the fhir.resources models.

The models check structure and types only; `rules` checks the rest. HL7 pages: hl7.org/fhir/R4/diagnosticreport.html,
observation.html, device.html, provenance.html.
"""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any, Literal

from fhir.resources.R4B.device import Device
from fhir.resources.R4B.diagnosticreport import DiagnosticReport
from fhir.resources.R4B.observation import Observation
from fhir.resources.R4B.provenance import Provenance

from fhir_writer.domain import codes
from fhir_writer.domain.codes import Json, concept
from fhir_writer.domain.study import Draft, FindingDraft, StudyFacts, fhir_datetime
from fhir_writer.domain.text import html_page, narrative, plain_text, small_narrative

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, codes.OUR_BASE)
_MODELS: dict[str, Any] = {
    "DiagnosticReport": DiagnosticReport,
    "Observation": Observation,
    "Device": Device,
    "Provenance": Provenance,
}
_LANGUAGE = "en"


@dataclass(frozen=True)
class Site:
    """What the site's settings say about every report."""

    organisation_name: str
    report_status: Literal["preliminary", "partial"]
    zone: tzinfo
    security_label: Literal["DEVAST", "AIAST"]
    accession_system: str | None


@dataclass(frozen=True)
class References:
    """How the resources of one delivery point at each other and at what the EHR has: FHIR `reference` strings."""

    report: str
    patient: str
    device: str
    order: str | None
    """The ServiceRequest, when the EHR has exactly one for this accession number."""
    observations: dict[str, str]
    """By finding name."""


def derived_uuid(*parts: str) -> str:
    """The same UUID for the same parts, on every machine and for ever."""
    return str(uuid.uuid5(_NAMESPACE, "\n".join(parts)))


def report_identifier(study_instance_uid: str) -> str:
    """Value of the DiagnosticReport's identifier: one for all versions of a study."""
    return derived_uuid("report", study_instance_uid)


def observation_identifier(study_instance_uid: str, finding_name: str) -> str:
    """Value of an Observation's identifier: one for all versions of a study's finding."""
    return derived_uuid("observation", study_instance_uid, finding_name)


def device_identifier(draft: Draft) -> str:
    """Value of the Device's identifier: one for each version of a model."""
    return derived_uuid("model", draft.model_id, draft.model_version)


def provenance_tag(study_instance_uid: str, report: Json) -> str:
    """Tag code of the Provenance of exactly this content; Provenance has no identifier to make it by otherwise.

    How the report points at its Observations does not count: it differs between a first and a repeated delivery.
    """
    content = {k: v for k, v in report.items() if k != "result"}
    return derived_uuid("provenance", study_instance_uid, json.dumps(content, sort_keys=True))


def content_tag(resource: Json) -> str:
    """Tag code of what a DiagnosticReport or an Observation says; another one means that somebody has changed it.

    Only what no server rewrites by itself: the texts without their spacing, the first coding of each concept, and the
    SHA-1 of each document, computed where the server gives the data.
    """

    def words(text: str) -> str:
        return " ".join(text.split())

    def first(concept: Json) -> str:
        return "".join(str(coding.get("code", "")) for coding in concept.get("coding", ())[:1])

    def digest(form: Json) -> str:
        if "data" not in form:  # a server may keep the data elsewhere and give a url
            return str(form.get("hash", ""))
        return base64.b64encode(hashlib.sha1(base64.b64decode(form["data"]), usedforsecurity=False).digest()).decode()

    return derived_uuid(
        "content",
        words(resource.get("conclusion", "")),
        *(first(concept) for concept in resource.get("conclusionCode", ())),
        *(f"{form.get('contentType')} {digest(form)}" for form in resource.get("presentedForm", ())),
        first(resource.get("valueCodeableConcept", {})),
        *(first(component.get("valueCodeableConcept", {})) for component in resource.get("component", ())),
        *(words(note.get("text", "")) for note in resource.get("note", ())),
    )


def _tagged(resource: Json) -> Json:
    resource["meta"]["tag"].append({"system": codes.CONTENT_TAG, "code": content_tag(resource)})
    return resource


def _checked(resource: Json) -> Json:
    """The resource as the fhir.resources model writes it; raises pydantic's `ValidationError`."""
    model = _MODELS[resource["resourceType"]].model_validate(resource)
    written: Json = json.loads(model.model_dump_json())
    return written


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _meta(site: Site) -> Json:
    return {"security": [codes.SECURITY_LABELS[site.security_label].coding()], "tag": [codes.AI_DRAFT.coding()]}


def _text(div: str) -> Json:
    return {"status": "generated", "div": div}


def imaging_study(study_instance_uid: str) -> Json:
    """Reference to the ImagingStudy by its UID, whether or not the EHR has one."""
    return {
        "type": "ImagingStudy",
        "identifier": {"system": codes.DICOM_UID, "value": f"urn:oid:{study_instance_uid}"},
    }


def order_reference(study: StudyFacts, site: Site, reference: str | None) -> Json | None:
    """Reference to the order by accession number, and to the resource itself when it was found."""
    if study.accession_number is None:
        return None
    identifier: Json = {
        "type": concept(codes.Code(codes.IDENTIFIER_TYPE, "ACSN", "Accession ID")),
        "value": study.accession_number,
    }
    if site.accession_system:
        identifier["system"] = site.accession_system
    order: Json = {"type": "ServiceRequest", "identifier": identifier}
    if reference:
        order["reference"] = reference
    return order


def attachment(content_type: str, text: str, title: str) -> Json:
    """An Attachment with its data inside: size in bytes and SHA-1 are of the data before base64."""
    data = text.encode()
    return {
        "contentType": content_type,
        "language": _LANGUAGE,
        "data": base64.b64encode(data).decode(),
        "size": len(data),
        "hash": base64.b64encode(hashlib.sha1(data, usedforsecurity=False).digest()).decode(),
        "title": title,
    }


def device(draft: Draft) -> Json:
    """The model as a Device."""
    return _checked(
        {
            "resourceType": "Device",
            "text": _text(small_narrative(f"Report drafting model {draft.model_id}, version {draft.model_version}")),
            "identifier": [{"system": codes.DEVICE_SYSTEM, "value": device_identifier(draft)}],
            "status": "active",
            "deviceName": [{"name": draft.model_id, "type": "model-name"}],
            "type": {"text": "Artificial intelligence model that drafts radiology reports"},
            "version": [{"value": draft.model_version}],
        }
    )


def _observation_basis(study: StudyFacts, site: Site, finding_name: str, status: str) -> Json:
    coded = codes.finding(finding_name)
    resource: Json = {
        "resourceType": "Observation",
        "meta": _meta(site),
        "identifier": [
            {
                "system": codes.OBSERVATION_SYSTEM,
                "value": observation_identifier(study.study_instance_uid, finding_name),
            }
        ],
        "status": status,
        "category": [concept(codes.Code(codes.OBSERVATION_CATEGORY, "imaging", "Imaging"))],
        "code": concept(coded.code, text=coded.text),
        "derivedFrom": [imaging_study(study.study_instance_uid)],
    }
    effective = fhir_datetime(study.started_at, site.zone)
    if effective:
        resource["effectiveDateTime"] = effective
    return resource


def observation(study: StudyFacts, draft: Draft, site: Site, item: FindingDraft, refs: References) -> Json:
    """One structured finding."""
    coded = codes.finding(item.name)
    state = codes.STATES[item.state]
    side = codes.SIDES[item.side] if item.side else None
    words = f"{coded.text}: {state.display}" + (f", {side.display.lower()}" if side else "")
    resource = _observation_basis(study, site, item.name, "preliminary") | {
        "text": _text(small_narrative(f"AI draft. {words}")),
        "subject": {"reference": refs.patient},
        "issued": _instant(draft.written_at),
        "valueCodeableConcept": concept(state, text=state.display),
        "device": {"reference": refs.device},
        "note": [{"text": f"{item.sentence} (model's confidence {item.confidence:.2f})".strip()}],
    }
    if coded.site:
        where = f"{coded.site.display}, {side.display.lower()}" if side else coded.site.display
        resource["bodySite"] = concept(coded.site, text=where)
    if side:
        resource["component"] = [{"code": concept(codes.LATERALITY), "valueCodeableConcept": concept(side)}]
    return _tagged(_checked(resource))


def diagnostic_report(study: StudyFacts, draft: Draft, site: Site, refs: References) -> Json:
    """The report itself."""
    loinc = codes.procedure_code(study.views, study.description)
    code = concept(loinc, text=loinc.display)
    if study.procedure:
        value, scheme, meaning = study.procedure
        local: Json = {"system": codes.scheme_system(scheme), "code": value}
        if meaning:
            local["display"] = meaning
        code["coding"].append(local)
    resource: Json = {
        "resourceType": "DiagnosticReport",
        "meta": _meta(site),
        "language": _LANGUAGE,
        "text": _text(narrative(draft)),
        "identifier": [{"system": codes.REPORT_SYSTEM, "value": report_identifier(study.study_instance_uid)}],
        "status": site.report_status,
        "category": [concept(*codes.CATEGORY)],
        "code": code,
        "subject": {"reference": refs.patient},
        "issued": _instant(draft.written_at),
        "performer": [{"type": "Organization", "display": site.organisation_name}],
        "imagingStudy": [imaging_study(study.study_instance_uid)],
        "presentedForm": [
            attachment("text/html", html_page(draft), "AI draft report (HTML)"),
            attachment("text/plain", plain_text(draft), "AI draft report (plain text)"),
        ],
    }
    if draft.impression:
        resource["conclusion"] = draft.impression
    effective = fhir_datetime(study.started_at, site.zone)
    if effective:
        resource["effectiveDateTime"] = effective
    order = order_reference(study, site, refs.order)
    if order:
        resource["basedOn"] = [order]
    results = [{"reference": refs.observations[item.name]} for item in draft.structured]
    if results:
        resource["result"] = results
    present = [codes.finding(item.name) for item in draft.structured if item.state == "present"]
    if present:
        resource["conclusionCode"] = [concept(coded.code, text=coded.text) for coded in present]
    return _tagged(_checked(resource))


def provenance(study: StudyFacts, draft: Draft, refs: References, tag: str) -> Json:
    """Who wrote the report, from what, when."""
    return _checked(
        {
            "resourceType": "Provenance",
            "meta": {"tag": [{"system": codes.PROVENANCE_TAG, "code": tag}]},
            "target": [{"reference": refs.report}],
            "recorded": _instant(draft.written_at),
            "agent": [
                {
                    "type": concept(codes.Code(codes.PROVENANCE_ROLE, "author", "Author")),
                    "who": {"reference": refs.device},
                }
            ],
            "entity": [{"role": "source", "what": imaging_study(study.study_instance_uid)}],
        }
    )
