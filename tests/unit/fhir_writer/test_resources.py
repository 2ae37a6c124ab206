"""What stands in the resources of a report, and from which source."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from typing import Any

import pytest

from fhir_writer.domain import codes
from fhir_writer.domain.resources import observation_identifier, report_identifier
from fhir_writer.domain.study import fhir_datetime, join_findings
from fhir_writer.domain.transaction import Existing, plan
from unit.fhir_writer.samples import SITE, draft, facts, found, new_uid

Json = dict[str, Any]


def built(study: Json | None = None, report: Json | None = None, site: Any = SITE) -> list[Json]:
    uid = new_uid()
    planned = plan(
        facts(uid=uid, **(study or {})),
        draft(uid=uid, **(report or {})),
        site,
        "Patient/p1",
        None,
        Existing(),
        "http://e",
    )
    assert planned.bundle is not None
    return [entry["resource"] for entry in planned.bundle["entry"]]


def one(resources: list[Json], kind: str) -> Json:
    (found_one,) = [resource for resource in resources if resource["resourceType"] == kind]
    return found_one


def texts(report: Json) -> dict[str, str]:
    return {form["contentType"]: base64.b64decode(form["data"]).decode() for form in report["presentedForm"]}


@pytest.mark.parametrize(
    ("views", "description", "code"),
    [
        (("PA",), "", "24648-8"),
        (("AP",), "", "36572-6"),
        (("AP",), "Chest MOBILE", "36589-0"),
        ((None,), "", "36554-4"),
        (("PA", "LL"), "", "24647-0"),
        (("AP", "LL"), "", "36643-5"),
        (("PA", "AP", "LL"), "", "30745-4"),
    ],
)
def test_the_loinc_code_follows_the_views(views: tuple[str | None, ...], description: str, code: str) -> None:
    report = one(built({"views": views, "description": description}), "DiagnosticReport")
    assert report["code"]["coding"][0] == codes.procedure_code(views, description).coding()
    assert report["code"]["coding"][0]["code"] == code


def test_the_sites_own_procedure_code_stands_beside_it() -> None:
    code = {"value": "CXR2", "scheme": "99 LOCAL", "meaning": "Chest, two views"}
    coding = one(built({"procedure": code}), "DiagnosticReport")["code"]["coding"][1]
    system = f"{codes.OUR_BASE}/CodeSystem/scheme-99-LOCAL"
    assert coding == {"system": system, "code": "CXR2", "display": "Chest, two views"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-05T07:58:30", "2026-01-05T07:58:30+01:00"),
        ("2026-07-05T07:58:30", "2026-07-05T07:58:30+02:00"),
        ("2026-01-05T07:58:30.123+05:30", "2026-01-05T07:58:30+05:30"),
        ("2026-01-05", "2026-01-05"),
        ("2026-02-30", None),
        ("nonsense", None),
        ("", None),
        (None, None),
    ],
)
def test_times_get_the_sites_zone_only_where_they_have_none(text: str | None, expected: str | None) -> None:
    assert fhir_datetime(text, SITE.zone) == expected


def test_banner_and_notices_stand_in_every_form_of_the_text() -> None:
    notice = "The image lies outside what this model was trained on; do not rely on this draft."
    report = one(built(report={"flags": ("out_of_domain",), "notices": (notice,)}), "DiagnosticReport")
    forms = texts(report)
    assert set(forms) == {"text/html", "text/plain"}
    for text in (*forms.values(), report["text"]["div"]):
        assert "AI DRAFT - PRELIMINARY" in text
        assert notice in text
        assert "echo-phantom-demo" in text


def test_attachments_say_their_size_and_hash() -> None:
    for form in one(built(report={"findings": "Größe 5 mm"}), "DiagnosticReport")["presentedForm"]:
        data = base64.b64decode(form["data"])
        assert form["size"] == len(data)
        assert base64.b64decode(form["hash"]) == hashlib.sha1(data, usedforsecurity=False).digest()
        assert form["language"] == "en"


def test_markup_and_control_characters_of_the_model_do_no_harm() -> None:
    model_text = {"findings": "<script>x</script> a\x00b\x0bc", "impression": "1 < 2"}
    report = one(built(report=model_text), "DiagnosticReport")
    assert "<script>" not in report["text"]["div"] + texts(report)["text/html"]
    assert "<script>x</script> abc" in texts(report)["text/plain"]
    assert report["conclusion"] == "1 < 2"


def test_an_empty_impression_is_no_conclusion() -> None:
    assert "conclusion" not in one(built(report={"impression": " \n"}), "DiagnosticReport")


def test_only_present_findings_are_conclusion_codes() -> None:
    structured = (found("pneumothorax"), found("cardiomegaly", "present"), found("nodule", "uncertain"))
    report = one(built(report={"structured": structured}), "DiagnosticReport")
    assert [c["coding"][0]["code"] for c in report["conclusionCode"]] == ["8186001"]
    assert len(report["result"]) == 3


def test_observations_carry_state_side_site_and_model() -> None:
    resources = built(report={"structured": (found("pleural_effusion", "present", "left"),)})
    observation, device = one(resources, "Observation"), one(resources, "Device")
    assert observation["code"]["coding"][0]["code"] == "60046008"
    assert observation["valueCodeableConcept"]["coding"][0]["code"] == "52101004"
    assert observation["bodySite"]["coding"][0]["code"] == "3120008"
    assert observation["component"][0]["valueCodeableConcept"]["coding"][0]["code"] == "7771000"
    assert "confidence 0.93" in observation["note"][0]["text"]
    assert observation["derivedFrom"][0]["identifier"]["value"].startswith("urn:oid:2.25.")
    assert device["deviceName"][0]["name"] == "echo-phantom-demo"
    assert device["version"][0]["value"] == "0a1b2c3d"


def test_an_unknown_finding_gets_no_guessed_code() -> None:
    coding = one(built(report={"structured": (found("new_thing"),)}), "Observation")["code"]["coding"][0]
    assert coding["system"] == codes.LOCAL_FINDING


def test_entries_of_one_finding_are_joined() -> None:
    (joined,) = join_findings(
        [
            found("nodule", "absent"),
            found("nodule", "present", "left", "A."),
            found("nodule", "present", "right", "B."),
        ]
    )
    assert (joined.state, joined.side, joined.sentence) == ("present", "both", "A. B.")


def test_identifiers_are_stable_over_versions_and_apart_over_studies() -> None:
    assert report_identifier("1.2.3") == report_identifier("1.2.3") != report_identifier("1.2.4")
    assert observation_identifier("1.2.3", "nodule") != observation_identifier("1.2.3", "pneumothorax")
    # Fixed for ever: another value would make a second report of every study that is already in an EHR.
    assert report_identifier("1.2.840.10008") == "442412af-6897-508c-a99a-78dc759b759a"


def test_the_order_is_named_by_accession_number() -> None:
    site = replace(SITE, accession_system="urn:oid:2.25.1")
    (order,) = one(built({"accession": "A1"}, site=site), "DiagnosticReport")["basedOn"]
    assert order["identifier"] == {
        "type": {"coding": [{"system": codes.IDENTIFIER_TYPE, "code": "ACSN", "display": "Accession ID"}]},
        "value": "A1",
        "system": "urn:oid:2.25.1",
    }
    assert "basedOn" not in one(built({"accession": " "}), "DiagnosticReport")


@pytest.mark.parametrize("value", ["CHEST  2V", " CHEST 2V", "CHEST 2V \x00", "CHEST\t\n2V"])
def test_a_procedure_code_is_written_with_the_spacing_that_fhir_allows(value: str) -> None:
    procedure = {"value": value, "scheme": "99X", "meaning": " \x00"}
    report = one(built({"procedure": procedure, "accession": "A\x1b7 "}), "DiagnosticReport")
    assert report["code"]["coding"][1]["code"] == "CHEST 2V"
    assert "display" not in report["code"]["coding"][1]
    assert report["basedOn"][0]["identifier"]["value"] == "A7"


def test_a_procedure_code_without_a_character_is_left_out() -> None:
    report = one(built({"procedure": {"value": "  ", "scheme": "99X", "meaning": "Chest"}}), "DiagnosticReport")
    assert len(report["code"]["coding"]) == 1


def test_a_time_whose_zone_had_seconds_then_is_written_as_its_date() -> None:
    assert fhir_datetime("1880-01-01T10:00:00", SITE.zone) == "1880-01-01"
