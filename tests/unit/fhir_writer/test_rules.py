"""Every rule catches the fault it is for, and only that: a clean Bundle has no breach."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from fhir_writer.domain import codes
from fhir_writer.domain.rules import breaches
from fhir_writer.domain.transaction import Existing, plan
from unit.fhir_writer.samples import SITE, draft, facts, new_uid

Json = dict[str, Any]
BASE = "http://ehr.test/fhir"


@pytest.fixture(scope="module")
def clean() -> Json:
    uid = new_uid()
    planned = plan(facts(uid=uid), draft(uid=uid), SITE, "Patient/p1", None, Existing(), BASE)
    assert planned.bundle is not None
    return planned.bundle


def of(bundle: Json, kind: str) -> Json:
    return next(entry for entry in bundle["entry"] if entry["resource"]["resourceType"] == kind)


def report(bundle: Json) -> Json:
    return of(bundle, "DiagnosticReport")["resource"]


def observation(bundle: Json) -> Json:
    return of(bundle, "Observation")["resource"]


def test_what_is_built_has_no_breach(clean: Json) -> None:
    assert breaches(clean) == []


FAULTS: dict[str, tuple[Callable[[Json], Any], str]] = {
    "a status code that does not exist": (lambda b: report(b).update(status="draft"), "status is not one"),
    "a final report": (lambda b: report(b).update(status="final"), "status is not one"),
    "an observation that claims to be final": (lambda b: observation(b).update(status="final"), "status is not one"),
    "no code": (lambda b: report(b).pop("code"), "missing"),
    "a code without LOINC": (
        lambda b: report(b)["code"].update(coding=[{"system": "urn:x:y", "code": "1"}]),
        "no LOINC",
    ),
    "no identifier": (lambda b: report(b).pop("identifier"), "identifier is missing"),
    "an identifier without system": (lambda b: report(b)["identifier"][0].pop("system"), "without system"),
    "no subject": (lambda b: report(b).pop("subject"), "subject is missing"),
    "a subject that is no patient": (
        lambda b: report(b).update(subject={"reference": "Group/1"}),
        "not a Patient/<id>",
    ),
    "a subject by full address": (
        lambda b: report(b).update(subject={"reference": f"{BASE}/Patient/1"}),
        "not a Patient/<id>",
    ),
    "no image study": (lambda b: report(b).pop("imagingStudy"), "imagingStudy is missing"),
    "a Device as performer": (
        lambda b: report(b).update(performer=[{"type": "Device", "display": "model"}]),
        "performer is not one",
    ),
    "an interpreter": (lambda b: report(b).update(resultsInterpreter=[{"display": "someone"}]), "claims that a person"),
    "no AI label": (lambda b: report(b)["meta"].pop("tag"), "AI draft label"),
    "no security label": (lambda b: observation(b)["meta"].pop("security"), "missing from meta.security"),
    "an attachment without contentType": (lambda b: report(b)["presentedForm"][0].pop("contentType"), "contentType"),
    "an attachment of a wrong size": (lambda b: report(b)["presentedForm"][0].update(size=1), "size is not"),
    "an attachment with another's hash": (
        lambda b: report(b)["presentedForm"][0].update(hash=report(b)["presentedForm"][1]["hash"]),
        "hash is not",
    ),
    "an attachment without data": (lambda b: report(b)["presentedForm"][0].pop("data"), "data is missing"),
    "a time without zone": (lambda b: report(b).update(effectiveDateTime="2026-01-05T07:58:30"), "effectiveDateTime"),
    "an unknown value": (
        lambda b: observation(b).update(valueCodeableConcept={"coding": [{"system": codes.SNOMED, "code": "1"}]}),
        "none of present",
    ),
    "an observation without device": (lambda b: observation(b).pop("device"), "device is missing"),
    "a fullUrl that is no urn:uuid": (lambda b: b["entry"][0].update(fullUrl="urn:uuid:1"), "no urn:uuid"),
    "two entries with one fullUrl": (lambda b: b["entry"][0].update(fullUrl=b["entry"][1]["fullUrl"]), "same fullUrl"),
    "a reference that leads nowhere": (
        lambda b: report(b)["result"].append({"reference": "urn:uuid:00000000-0000-4000-8000-000000000000"}),
        "no entry has as fullUrl",
    ),
    "a reference by query": (lambda b: report(b)["result"].append({"reference": "Observation?code=1"}), "never used"),
    "a create without condition": (lambda b: b["entry"][0]["request"].pop("ifNoneExist"), "would be doubled"),
    "an update without condition": (
        lambda b: of(b, "Device").update(
            fullUrl=f"{BASE}/Device/1",
            resource=of(b, "Device")["resource"] | {"id": "1"},
            request={"method": "PUT", "url": "Device/1"},
        ),
        "without ifMatch",
    ),
    "a delete": (lambda b: b["entry"][0].update(request={"method": "DELETE", "url": "Device/1"}), "never made"),
    "a resource that is never written": (
        lambda b: b["entry"][0].update(resource={"resourceType": "Patient"}),
        "never written",
    ),
    "an unknown element": (lambda b: report(b).update(verdict="x"), "extra"),
    "a batch": (lambda b: b.update(type="batch"), "not transaction"),
    "nothing": (lambda b: b.update(entry=[]), "empty"),
    "no author": (lambda b: of(b, "Provenance")["resource"].pop("agent"), "missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(clean: Json, fault: str) -> None:
    spoil, expected = FAULTS[fault]
    bundle = copy.deepcopy(clean)
    spoil(bundle)
    found = breaches(bundle)
    assert any(expected in breach for breach in found), found


def test_breaches_do_not_quote_the_data(clean: Json) -> None:
    bundle = copy.deepcopy(clean)
    report(bundle)["conclusion"] = {"secret": "words"}
    assert breaches(bundle)
    assert "words" not in " ".join(breaches(bundle))
