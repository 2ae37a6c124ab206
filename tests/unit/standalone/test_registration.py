"""The registration that plays the hospital's for the embedded EHR."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from fhir_writer.domain.codes import DEFAULT_PATIENT_SYSTEM
from fhir_writer.domain.patient import match
from fhir_writer.domain.study import PatientFacts
from standalone.registration import EhrAway, PatientRegistration, human_name, patient_resource
from unit.fhir_writer.samples import completed, new_uid

PATIENT = {
    "patient_id": "M 1",
    "issuer_of_patient_id": None,
    "patient_name": "DOE^ANN^B^DR^JR=X^Y",
    "patient_birth_date": "1960-02-29",
    "patient_sex": "F",
    "patient_age": None,
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "DOE^ANN^B^DR^JR=X^Y",
            {
                "use": "official",
                "text": "DR ANN B DOE JR",
                "family": "DOE",
                "given": ["ANN", "B"],
                "prefix": ["DR"],
                "suffix": ["JR"],
            },
        ),
        ("DOE", {"use": "official", "text": "DOE", "family": "DOE"}),
        ("^ANN", {"use": "official", "text": "ANN", "given": ["ANN"]}),
    ],
)
def test_a_person_name(name: str, expected: dict[str, Any]) -> None:
    assert human_name(name) == [expected]


@pytest.mark.parametrize("name", [None, "", "^^", "=X"])
def test_no_name(name: str | None) -> None:
    assert human_name(name) == []


def test_who_is_registered_is_who_the_writer_finds() -> None:
    resource = patient_resource(PATIENT, DEFAULT_PATIENT_SYSTEM) | {"id": "5"}
    assert match(PatientFacts("M 1", None, "1960-02-29", "F"), DEFAULT_PATIENT_SYSTEM, [resource]) == "5"


def registration(status: int, seen: list[httpx.Request], systems: dict[str, str] | None = None) -> PatientRegistration:
    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if status == 0:
            raise httpx.ConnectError("refused")
        return httpx.Response(status)

    http = httpx.Client(transport=httpx.MockTransport(answer))
    return PatientRegistration(http, "http://ehr.test/fhir", systems or {}, DEFAULT_PATIENT_SYSTEM)


@pytest.mark.parametrize("status", [200, 201, 400, 412, 422])
def test_one_conditional_create_a_study(status: int) -> None:
    seen: list[httpx.Request] = []
    registration(status, seen).study_completed(None, completed(new_uid(), mrn="M1"))  # type: ignore[arg-type]  # not used
    (request,) = seen
    assert request.headers["If-None-Exist"] == f"identifier={DEFAULT_PATIENT_SYSTEM}|M1"


@pytest.mark.parametrize("status", [0, 500, 503, 404])
def test_an_ehr_that_is_away_is_waited_for(status: int) -> None:
    with pytest.raises(EhrAway):
        registration(status, []).study_completed(None, completed(new_uid()))  # type: ignore[arg-type]  # not used


@pytest.mark.parametrize(
    ("patient", "systems"), [({"mrn": None}, {}), ({"mrn": " "}, {}), ({"issuer": "B"}, {"A": "urn:a:b"})]
)
def test_who_cannot_be_identified_is_not_registered(patient: dict[str, Any], systems: dict[str, str]) -> None:
    seen: list[httpx.Request] = []
    registration(201, seen, systems).study_completed(None, completed(new_uid(), **patient))  # type: ignore[arg-type]  # not used
    assert seen == []
