"""Which Patient a report goes to: the cases in which none is taken matter most."""

from __future__ import annotations

from typing import Any

import pytest

from fhir_writer.domain.outcome import PatientNotFound, Refused
from fhir_writer.domain.patient import identifier_system, match
from fhir_writer.domain.study import PatientFacts
from unit.fhir_writer.samples import patient

SYSTEM = "urn:oid:2.25.111"
IMAGES = PatientFacts("M1", None, "1960-02-29", "F")


def hit(number: str = "1", **other: Any) -> dict[str, Any]:
    return patient("M1", SYSTEM, id=number) | other


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"birthDate": "1960-02"},
        {"birthDate": "1960"},
        {"birthDate": None},
        {"gender": "unknown"},
        {"gender": None},
        {"active": True},
        {"identifier": [{"value": "M1"}, {"system": SYSTEM, "value": "M1"}]},
    ],
)
def test_one_patient_who_does_not_disagree_is_taken(other: dict[str, Any]) -> None:
    assert match(IMAGES, SYSTEM, [hit(**other)]) == "1"


def test_images_without_birth_date_and_sex_agree_with_anybody() -> None:
    assert match(PatientFacts("M1", None, None, None), SYSTEM, [hit()]) == "1"


@pytest.mark.parametrize(
    ("hits", "code"),
    [
        ([], "patient_not_found"),
        ([hit("1"), hit("2")], "patient_ambiguous"),
        ([hit(birthDate="1960-02-28")], "patient_mismatch"),
        ([hit(birthDate="1961")], "patient_mismatch"),
        ([hit(gender="male")], "patient_mismatch"),
        ([hit(active=False)], "patient_inactive"),
        ([hit(link=[{"other": {"reference": "Patient/2"}, "type": "replaced-by"}])], "patient_inactive"),
        ([patient("M2", SYSTEM, id="1")], "patient_not_found"),  # a server that ignored the parameter
        ([patient("M1", "urn:oid:2.25.222", id="1")], "patient_not_found"),
    ],
)
def test_otherwise_nobody_is_taken(hits: list[dict[str, Any]], code: str) -> None:
    with pytest.raises(Refused) as refusal:
        match(IMAGES, SYSTEM, hits)
    assert refusal.value.code == code
    assert isinstance(refusal.value, PatientNotFound) == (code == "patient_not_found")
    assert "M1" not in refusal.value.text + str(refusal.value)


def test_a_merged_record_beside_the_active_one_does_not_count() -> None:
    assert match(IMAGES, SYSTEM, [hit("1", active=False), hit("2")]) == "2"


def test_no_patient_id_no_match() -> None:
    with pytest.raises(Refused) as refusal:
        match(PatientFacts(None, None, None, None), SYSTEM, [hit()])
    assert refusal.value.code == "patient_id_missing"


@pytest.mark.parametrize(
    ("issuer", "systems", "expected"),
    [
        (None, {}, "default"),
        ("A", {}, "default"),
        (None, {"A": "a"}, "default"),
        ("A", {"A": "a"}, "a"),
    ],
)
def test_the_system_of_an_issuer(issuer: str | None, systems: dict[str, str], expected: str) -> None:
    assert identifier_system(issuer, systems, "default") == expected


def test_an_issuer_that_the_mapping_does_not_know_is_refused() -> None:
    with pytest.raises(Refused) as refusal:
        identifier_system("B", {"A": "a"}, "default")
    assert refusal.value.code == "patient_issuer_unknown"
