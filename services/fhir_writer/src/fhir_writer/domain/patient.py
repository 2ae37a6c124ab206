"""Which Patient of the EHR the images belong to: exactly one hit whose birth date and sex do not disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fhir_writer.domain.outcome import PatientNotFound, Refused
from fhir_writer.domain.study import PatientFacts

_GENDER = {"M": "male", "F": "female", "O": "other"}


def identifier_system(issuer: str | None, systems: Mapping[str, str], default: str) -> str:
    """The identifier system of an IssuerOfPatientID.

    Without an issuer, or without any mapping configured, the site's default. An issuer that a configured mapping
    does not know is refused: its numbers may mean other people.
    """
    if issuer is None or not systems:
        return default
    if issuer not in systems:
        raise Refused("patient_issuer_unknown", "The issuer of the patient ID is not in ECHO_FHIR_PATIENT_SYSTEMS.")
    return systems[issuer]


def required_patient_id(patient: PatientFacts) -> str:
    """The patient ID, or a refusal: without one nobody can be matched."""
    if patient.patient_id is None:
        raise Refused("patient_id_missing", "The images carry no patient ID.")
    return patient.patient_id


def match(patient: PatientFacts, system: str, hits: Sequence[Mapping[str, Any]]) -> str:
    """The id of the one Patient; raises `PatientNotFound` or `Refused` with the reason.

    Hits that do not carry the identifier themselves do not count: a server that ignores a search parameter answers
    with everybody.
    """
    wanted = required_patient_id(patient)
    found = [hit for hit in hits if _carries(hit, system, wanted)]
    active = [hit for hit in found if hit.get("active") is not False and not _replaced(hit)]
    if not active:
        if found:
            raise Refused("patient_inactive", "The Patient with this identifier is marked inactive, perhaps merged.")
        raise PatientNotFound("patient_not_found", "No Patient with this identifier at the FHIR server.")
    if len(active) > 1:
        raise Refused("patient_ambiguous", "More than one Patient at the FHIR server has this identifier.")
    differing = _disagreement(patient, active[0])
    if differing:
        raise Refused("patient_mismatch", f"The Patient's {differing} at the FHIR server differs from the images'.")
    return str(active[0]["id"])


def _carries(hit: Mapping[str, Any], system: str, value: str) -> bool:
    return any(
        identifier.get("system") == system and identifier.get("value") == value
        for identifier in hit.get("identifier", ())
    )


def _replaced(hit: Mapping[str, Any]) -> bool:
    """Merged into another: not to be used any more (hl7.org/fhir/R4/valueset-link-type.html)."""
    return any(link.get("type") == "replaced-by" for link in hit.get("link", ()))


def _disagreement(patient: PatientFacts, hit: Mapping[str, Any]) -> str | None:
    """The first of birth date and sex that both sides have and that differs; a partial date agrees with its days."""
    born = hit.get("birthDate")
    if born and patient.birth_date and not patient.birth_date.startswith(str(born)[:10]):
        return "birth date"
    gender = hit.get("gender")
    sex = _GENDER.get(patient.sex or "")
    if gender and gender != "unknown" and sex and gender != sex:
        return "sex"
    return None
