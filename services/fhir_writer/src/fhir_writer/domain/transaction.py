"""The transaction Bundle that brings the EHR from what it has to what the draft says.

A create carries `ifNoneExist`, an update `ifMatch` (hl7.org/fhir/R4/http.html#trules), so the same Bundle sent twice
has its effect once and nobody's change is overwritten unseen.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from fhir_writer.domain import codes, resources
from fhir_writer.domain.codes import Json
from fhir_writer.domain.outcome import Refused
from fhir_writer.domain.resources import References, Site
from fhir_writer.domain.study import Draft, StudyFacts


@dataclass(frozen=True)
class Existing:
    """What the EHR has of this study now."""

    report: Json | None = None
    observations: dict[str, Json] = field(default_factory=dict)
    """By the value of our identifier."""
    device: str | None = None
    """Id of the model's Device."""


@dataclass(frozen=True)
class Plan:
    """What to send. `bundle` is None when the EHR has the draft's content already."""

    bundle: Json | None
    report_entry: int
    """Index of the DiagnosticReport's entry."""


def known_observation_identifiers(study: StudyFacts, draft: Draft) -> list[str]:
    """Identifiers of all Observations that any version of this study's report may have."""
    names = sorted({*codes.FINDINGS, *(item.name for item in draft.structured)})
    return [resources.observation_identifier(study.study_instance_uid, name) for name in names]


def plan(
    study: StudyFacts, draft: Draft, site: Site, patient: str, order: str | None, existing: Existing, base_url: str
) -> Plan:
    """Build the Bundle. `patient` and `order` are literal references, `base_url` has no slash at its end.

    Raises `Refused("changed_by_human")` when a person has touched what would be changed.
    """
    uid = study.study_instance_uid
    if existing.report is not None:
        refuse_if_touched(existing.report, site)
    refs = References(
        report=f"DiagnosticReport/{existing.report['id']}" if existing.report else _urn("report", uid),
        patient=patient,
        device=f"Device/{existing.device}" if existing.device else _urn("model", draft.model_id, draft.model_version),
        order=order,
        observations={
            item.name: f"Observation/{found['id']}"
            if (found := existing.observations.get(resources.observation_identifier(uid, item.name)))
            else _urn("observation", uid, item.name)
            for item in draft.structured
        },
    )
    report = resources.diagnostic_report(study, draft, site, refs)
    wanted = {
        resources.observation_identifier(uid, item.name): resources.observation(study, draft, site, item, refs)
        for item in draft.structured
    }
    stale = {
        value: found
        for value, found in existing.observations.items()
        if value not in wanted and found.get("status") != "entered-in-error"
    }
    if existing.report is not None and not stale and _same_content(report, wanted, existing):
        return Plan(None, -1)
    entries = [] if existing.device else [_create(refs.device, resources.device(draft))]
    for value, built in wanted.items():
        found = existing.observations.get(value)
        if found is None:
            entries.append(_create(_urn_of(built, study, refs), built))
        else:
            _refuse_if_changed(found)
            entries.append(_update(base_url, found, built | {"id": found["id"]}))
    for found in stale.values():
        _refuse_if_changed(found)
        # Left as it is, it would go on saying something that the report no longer says.
        entries.append(_update(base_url, found, _without_server_meta(found) | {"status": "entered-in-error"}))
    report_entry = len(entries)
    if existing.report is None:
        entries.append(_create(refs.report, report))
    else:
        entries.append(_update(base_url, existing.report, _merged(existing.report, report)))
    tag = resources.provenance_tag(uid, report)
    entries.append(
        _create(
            _urn("provenance", tag), resources.provenance(study, draft, refs, tag), f"_tag={codes.PROVENANCE_TAG}|{tag}"
        )
    )
    return Plan({"resourceType": "Bundle", "type": "transaction", "entry": entries}, report_entry)


def _urn(*parts: str) -> str:
    return f"urn:uuid:{resources.derived_uuid('entry', *parts)}"


def _urn_of(observation: Json, study: StudyFacts, refs: References) -> str:
    value = observation["identifier"][0]["value"]
    return next(
        reference
        for name, reference in refs.observations.items()
        if resources.observation_identifier(study.study_instance_uid, name) == value
    )


def _create(full_url: str, resource: Json, condition: str | None = None) -> Json:
    if condition is None:
        identifier = resource["identifier"][0]
        condition = f"identifier={identifier['system']}|{identifier['value']}"
    return {
        "fullUrl": full_url,
        "resource": resource,
        "request": {
            "method": "POST",
            "url": resource["resourceType"],
            "ifNoneExist": quote(condition, safe="=&:/._-"),
        },
    }


def _update(base_url: str, current: Json, resource: Json) -> Json:
    url = f"{resource['resourceType']}/{current['id']}"
    return {
        "fullUrl": f"{base_url}/{url}",
        "resource": resource,
        "request": {"method": "PUT", "url": url, "ifMatch": f'W/"{current["meta"]["versionId"]}"'},
    }


def _without_server_meta(resource: Json) -> Json:
    kept = {k: v for k, v in resource.get("meta", {}).items() if k in ("security", "tag", "profile")}
    return {**resource, "meta": kept}


_REPORT_ELEMENTS = frozenset(
    {
        "text",
        "language",
        "status",
        "category",
        "code",
        "subject",
        "effectiveDateTime",
        "issued",
        "performer",
        "result",
        "imagingStudy",
        "conclusion",
        "conclusionCode",
        "presentedForm",
    }
)


def _merged(current: Json, built: Json) -> Json:
    """Our elements from `built`; what the EHR added beside them (encounter, further identifiers, order) stays.

    Not with another patient, and the order not with another accession number: they were corrected in the PACS.
    """
    not_kept = _REPORT_ELEMENTS if _is_about(current, built) else _REPORT_ELEMENTS | {"encounter", "basedOn"}
    merged = {k: v for k, v in _without_server_meta(current).items() if k not in not_kept} | built
    merged["id"] = current["id"]
    others = [i for i in current.get("identifier", ()) if i.get("system") != codes.REPORT_SYSTEM]
    merged["identifier"] = [*built["identifier"], *others]
    numbers = {order.get("identifier", {}).get("value") for order in current.get("basedOn", ())} - {None}
    same_order = numbers <= {order["identifier"]["value"] for order in built.get("basedOn", ())}
    if "basedOn" not in not_kept and same_order and any(order.get("reference") for order in current.get("basedOn", ())):
        merged["basedOn"] = current["basedOn"]
    return merged


def _is_about(current: Json, built: Json) -> bool:
    """Whether both have the same patient; a server may make the reference absolute."""
    wanted = built["subject"]["reference"]
    reference = str(current.get("subject", {}).get("reference", ""))
    return reference == wanted or reference.endswith(f"/{wanted}")


# --- what a person has touched ---------------------------------------------------------------------------------------

_CHANGED = "The report at the FHIR server was changed or verified by someone; a person must decide about the new draft."


def refuse_if_touched(report: Json, site: Site) -> None:
    """Raise `Refused("changed_by_human")` unless the report is still an untouched draft of ours.

    A status beyond a draft's, an interpreter, a missing AI label, a content that is not what its tag says, or a text
    and conclusion that no longer fit each other and their hash: someone has worked on it.
    """
    labels = {label.get("code") for label in report.get("meta", {}).get("tag", ())}
    untouched = (
        report.get("status") in {"preliminary", "partial", site.report_status}
        and not report.get("resultsInterpreter")
        and codes.AI_DRAFT.code in labels
        and _content_is_ours(report)
        and _text_is_ours(report)
    )
    if not untouched:
        raise Refused("changed_by_human", _CHANGED)


def _refuse_if_changed(observation: Json) -> None:
    if observation.get("status") not in ("preliminary", "entered-in-error") or not _content_is_ours(observation):
        raise Refused("changed_by_human", _CHANGED)


def _content_is_ours(resource: Json) -> bool:
    """Servers keep the tags of earlier versions beside the newest; what was written before there were any has none."""
    tags = [
        tag.get("code") for tag in resource.get("meta", {}).get("tag", ()) if tag.get("system") == codes.CONTENT_TAG
    ]
    return not tags or resources.content_tag(resource) in tags


def _text_is_ours(report: Json) -> bool:
    plain = ""
    for form in report.get("presentedForm", ()):
        if "data" not in form:
            continue  # a server may keep the data elsewhere and give a url
        data = base64.b64decode(form["data"])
        if form.get("hash") != base64.b64encode(hashlib.sha1(data, usedforsecurity=False).digest()).decode():
            return False
        if form.get("contentType") == "text/plain":
            plain = data.decode(errors="replace")
    if not report.get("presentedForm"):
        return False
    return not plain or report.get("conclusion", "") in plain


# --- whether anything would change -----------------------------------------------------------------------------------

_TIMES_AND_LINKS = frozenset({"meta", "text", "issued", "result", "device", "data", "reference", "id"})
"""Not compared: they differ between attempts, or between us and the server, without a change of content."""


def _covers(current: Any, built: Any) -> bool:
    """Whether everything in `built` stands in `current`."""
    if isinstance(built, dict):
        return isinstance(current, dict) and all(
            key in _TIMES_AND_LINKS or (key in current and _covers(current[key], value)) for key, value in built.items()
        )
    if isinstance(built, list):
        return (
            isinstance(current, list)
            and len(current) >= len(built)
            and all(_covers(c, b) for c, b in zip(current, built, strict=False))
        )
    return bool(current == built)


def _same_content(report: Json, wanted: dict[str, Json], existing: Existing) -> bool:
    assert existing.report is not None
    current = existing.report
    same_elements = {k for k in current if k in _REPORT_ELEMENTS} == {k for k in report if k in _REPORT_ELEMENTS}
    return (
        same_elements
        and _is_about(current, report)
        and len(current.get("result", ())) == len(report.get("result", ()))
        and len(current.get("conclusionCode", ())) == len(report.get("conclusionCode", ()))
        and _covers(current, report)
        and all(
            value in existing.observations
            and _covers(existing.observations[value], built)
            and ("component" in built) == ("component" in existing.observations[value])
            for value, built in wanted.items()
        )
    )
