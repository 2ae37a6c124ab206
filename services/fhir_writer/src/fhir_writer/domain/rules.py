"""Our own rules for what we send: what servers take without a word, a reader of the EHR would suffer from.

Every rule looks at the finished transaction Bundle; a breach means that it is never sent.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator
from typing import Any

from fhir.resources.R4B.bundle import Bundle
from pydantic import ValidationError

from fhir_writer.domain import codes
from fhir_writer.domain.codes import Json

_URN_UUID = re.compile(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")
_LITERAL = re.compile(r"([A-Z][A-Za-z]+)/[A-Za-z0-9.-]{1,64}\Z")
_ABSOLUTE = re.compile(r"https?://\S+/[A-Z][A-Za-z]+/[A-Za-z0-9.-]{1,64}\Z")  # in what the EHR added
_WEAK_ETAG = re.compile(r'W/"[^"\s]+"\Z')
_WITH_ZONE = re.compile(r".+T\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)\Z")

_STATUSES = {
    "DiagnosticReport": {"preliminary", "partial"},
    "Observation": {"preliminary", "entered-in-error"},
    "Device": {"active"},
}
_REQUIRED = {
    "DiagnosticReport": (
        "identifier",
        "status",
        "category",
        "code",
        "subject",
        "issued",
        "performer",
        "imagingStudy",
        "presentedForm",
        "text",
    ),
    "Observation": ("identifier", "status", "category", "code", "derivedFrom"),
    "Device": ("identifier", "deviceName", "version"),
    "Provenance": ("target", "recorded", "agent", "entity"),
}
_STATE_CODES = {code.code for code in codes.STATES.values()}
_PERFORMERS = {"Organization", "Practitioner", "PractitionerRole", "CareTeam"}
_CONTENT_TYPES = {"text/html", "text/plain", "application/pdf"}


def breaches(bundle: Json) -> list[str]:
    """What is wrong with a transaction Bundle of ours, by place and rule, without the values; empty when nothing is."""
    found = list(_structure(bundle))
    if found:
        return found  # the rules below rely on the structure
    found += _entries(bundle["entry"])
    for index, entry in enumerate(bundle["entry"]):
        resource = entry["resource"]
        place = f"entry {index} {resource['resourceType']}"
        found += [f"{place}: {problem}" for problem in _resource(resource)]
    return found


def _structure(bundle: Json) -> Iterator[str]:
    try:
        Bundle.model_validate(bundle)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False)[:10]:
            yield f"{'.'.join(str(part) for part in problem['loc'])}: {problem['type']}"
        return
    if bundle.get("type") != "transaction":
        yield "Bundle.type: not transaction"
    if not bundle.get("entry"):
        yield "Bundle.entry: empty"
    for index, entry in enumerate(bundle.get("entry", ())):
        if not {"fullUrl", "resource", "request"} <= entry.keys():
            yield f"entry {index}: without fullUrl, resource or request"
        elif entry["resource"]["resourceType"] not in _REQUIRED:
            yield f"entry {index}: a resource type that is never written"


def _entries(entries: list[Json]) -> Iterator[str]:
    """Full URLs, requests, and that every reference inside the Bundle leads somewhere."""
    full_urls = [entry["fullUrl"] for entry in entries]
    if len(set(full_urls)) != len(full_urls):
        yield "Bundle: two entries have the same fullUrl"
    for index, entry in enumerate(entries):
        request, resource = entry["request"], entry["resource"]
        kind = resource["resourceType"]
        if request["method"] == "POST":
            if not _URN_UUID.match(entry["fullUrl"]):
                yield f"entry {index}: fullUrl of a new resource is no urn:uuid"
            if request["url"] != kind:
                yield f"entry {index}: request.url is not the resource's type"
            if not request.get("ifNoneExist"):
                yield f"entry {index}: a create without ifNoneExist would be doubled when sent again"
        elif request["method"] == "PUT":
            if not resource.get("id") or request["url"] != f"{kind}/{resource['id']}":
                yield f"entry {index}: request.url is not the resource's id"
            if not entry["fullUrl"].endswith(f"/{request['url']}"):
                yield f"entry {index}: fullUrl is not the resource's address"
            if not _WEAK_ETAG.match(request.get("ifMatch", "")):
                yield f"entry {index}: an update without ifMatch could overwrite someone's change"
        else:
            yield f"entry {index}: a request that is never made"
        for reference in references(resource):
            if reference.startswith("urn:"):
                if reference not in full_urls:
                    yield f"entry {index}: a reference that no entry has as fullUrl"
            elif not _LITERAL.match(reference) and not _ABSOLUTE.match(reference):
                yield f"entry {index}: a reference of a form that is never used"


def references(node: Any) -> Iterator[str]:
    """Every `reference` string below a node."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "reference" and isinstance(value, str):
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for item in node:
            yield from references(item)


def _resource(resource: Json) -> Iterator[str]:
    kind = resource["resourceType"]
    for name in _REQUIRED[kind]:
        if not resource.get(name):
            yield f"{name} is missing"
    if kind in _STATUSES and resource.get("status") not in _STATUSES[kind]:
        yield "status is not one that is written"
    for identifier in resource.get("identifier", ()):
        if not identifier.get("system") or not identifier.get("value"):
            yield "identifier without system or value"
    if kind in ("DiagnosticReport", "Observation") and resource.get("status") != "entered-in-error":
        yield from _subject(resource)
        meta = resource.get("meta", {})
        if not codes.SECURITY_LABELS.keys() & {c.get("code") for c in meta.get("security", ())}:
            yield "the label of a device's or AI's assertion is missing from meta.security"
        if codes.AI_DRAFT.code not in {c.get("code") for c in meta.get("tag", ())}:
            yield "the AI draft label is missing from meta.tag"
    if kind == "DiagnosticReport":
        yield from _report(resource)
    if kind == "Observation" and resource.get("status") == "preliminary":
        values = {c.get("code") for c in resource.get("valueCodeableConcept", {}).get("coding", ())}
        if not values & _STATE_CODES:
            yield "valueCodeableConcept is none of present, absent, undetermined"
        if not resource.get("device"):
            yield "device is missing"


def _subject(resource: Json) -> Iterator[str]:
    reference = resource.get("subject", {}).get("reference", "")
    literal = _LITERAL.match(reference)
    if literal is None or literal.group(1) != "Patient":
        yield "subject is not a Patient/<id> reference"


def _report(resource: Json) -> Iterator[str]:
    if not _WITH_ZONE.match(resource.get("issued", "")):
        yield "issued is not an instant with zone"
    for performer in resource.get("performer", ()):
        kind = performer.get("type") or performer.get("reference", "").split("/")[0]
        if kind not in _PERFORMERS or performer.get("reference", "").startswith(("Device/", "urn:")):
            yield "performer is not one R4 allows (a Device is none)"
    if resource.get("resultsInterpreter"):
        yield "resultsInterpreter claims that a person has read it"
    systems = {c.get("system") for c in resource.get("code", {}).get("coding", ())}
    if codes.LOINC not in systems:
        yield "code has no LOINC coding"
    for form in resource.get("presentedForm", ()):
        yield from (f"presentedForm {problem}" for problem in _attachment(form))


def _attachment(form: Json) -> Iterator[str]:
    if form.get("contentType") not in _CONTENT_TYPES:
        yield "contentType is missing or unknown"
    if not form.get("language"):
        yield "language is missing"
    try:
        data = base64.b64decode(form.get("data", ""), validate=True)
    except (binascii.Error, ValueError):
        yield "data is not base64"
        return
    if not data:
        yield "data is missing"
    if form.get("size") != len(data):
        yield "size is not the number of bytes"
    digest = base64.b64encode(hashlib.sha1(data, usedforsecurity=False).digest()).decode()
    if form.get("hash") != digest:
        yield "hash is not the SHA-1 of the data"
