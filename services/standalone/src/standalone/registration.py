"""The hospital's registration, played for the embedded EHR: a Patient for every study of a new patient.

Only for trying things out: in a hospital, patients are registered by people before they are imaged, and the FHIR writer
itself never creates one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx
import sqlalchemy as sa
from pydantic import Field
from sqlalchemy.engine import Connection

from fhir_writer.domain.codes import DEFAULT_PATIENT_SYSTEM
from fhir_writer.domain.outcome import Refused
from fhir_writer.domain.patient import identifier_system
from pipeline.buses import make_bus
from pipeline.clock import SystemClock
from pipeline.consume import EventConsumer, Inbox
from pipeline.database import Database
from pipeline.errors import TransientError
from pipeline.events import ALL_TOPICS, STUDY_COMPLETED, Event
from pipeline.service import ServiceRunner
from pipeline.settings import BusSettings, CommonSettings, DatabaseSettings, load_settings
from pipeline.telemetry import study_ref

log = logging.getLogger(__name__)

GROUP = "registration"
DESCRIPTION = "Registers the patients of completed studies in the embedded EHR, for trying things out."
_GENDER = {"M": "male", "F": "female", "O": "other"}


class RegistrationSettings(CommonSettings, DatabaseSettings, BusSettings):
    """The patient systems must be the FHIR writer's, or it will not find who was registered."""

    fhir_base_url: str = Field(description="Base URL of the embedded EHR's FHIR R4 API.")
    fhir_patient_systems: dict[str, str] = Field(
        default_factory=dict, description="JSON object: IssuerOfPatientID to identifier system, as the FHIR writer's."
    )
    fhir_default_patient_system: str = Field(
        DEFAULT_PATIENT_SYSTEM, description="Identifier system of patient IDs otherwise, as the FHIR writer has it."
    )


class EhrAway(TransientError):
    """The embedded EHR does not answer or refuses for now."""


def human_name(patient_name: str | None) -> list[dict[str, Any]]:
    """A DICOM PN (PS3.5 6.2.1.2) as FHIR HumanName: the alphabetic group's family, given, middle, prefix, suffix."""
    group = (patient_name or "").split("=")[0]
    parts = [part.strip() for part in group.split("^")] + [""] * 5
    family, given, middle, prefix, suffix = parts[:5]
    text = " ".join(part for part in (prefix, given, middle, family, suffix) if part)
    name: dict[str, Any] = {"use": "official", "text": text}
    if family:
        name["family"] = family
    for key, words in (("given", [given, middle]), ("prefix", [prefix]), ("suffix", [suffix])):
        kept = [word for word in words if word]
        if kept:
            name[key] = kept
    return [name] if name["text"] else []


def patient_resource(patient: Mapping[str, Any], system: str) -> dict[str, Any]:
    """The Patient of the event's `patient` part."""
    resource: dict[str, Any] = {
        "resourceType": "Patient",
        "identifier": [
            {
                "type": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "MR"}]},
                "system": system,
                "value": patient["patient_id"].strip(),
            }
        ],
        "active": True,
        "gender": _GENDER.get(patient["patient_sex"] or "", "unknown"),
    }
    name = human_name(patient["patient_name"])
    if name:
        resource["name"] = name
    if patient["patient_birth_date"]:
        resource["birthDate"] = patient["patient_birth_date"]
    return resource


class PatientRegistration:
    """Handles `imaging.study.completed` by one conditional create, so that a patient comes into being once."""

    def __init__(self, http: httpx.Client, base_url: str, systems: Mapping[str, str], default_system: str) -> None:
        self._http = http
        self._base_url = base_url.rstrip("/")
        self._systems = dict(systems)
        self._default_system = default_system

    def study_completed(self, _connection: Connection, event: Event) -> None:
        """Register the patient. Raises `EhrAway`, after which the consumer waits and tries again."""
        patient = event.data["patient"]
        study = study_ref(event.subject)
        if not (patient["patient_id"] or "").strip():
            log.warning("no patient ID: nobody to register", extra={"study": study})
            return
        try:
            system = identifier_system(
                (patient["issuer_of_patient_id"] or "").strip() or None, self._systems, self._default_system
            )
        except Refused as error:
            log.warning("patient not registered", extra={"study": study, "code": error.code})
            return
        resource = patient_resource(patient, system)
        condition = quote(f"identifier={system}|{resource['identifier'][0]['value']}", safe="=:/|")
        try:
            answer = self._http.post(
                f"{self._base_url}/Patient",
                json=resource,
                headers={"Content-Type": "application/fhir+json", "If-None-Exist": condition},
            )
        except httpx.HTTPError as error:
            raise EhrAway(f"the embedded EHR cannot be reached: {type(error).__name__}") from None
        if answer.status_code in (200, 201):
            log.info("patient registered" if answer.status_code == 201 else "patient known", extra={"study": study})
        elif answer.status_code in (400, 412, 422):
            # The report parks with its reason at the FHIR writer; waiting would hold up everybody else.
            log.error("registration refused", extra={"study": study, "http_status": answer.status_code})
        else:
            raise EhrAway(f"the embedded EHR answered with status {answer.status_code}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the registration; returns its exit status."""
    settings = load_settings(RegistrationSettings, DESCRIPTION, argv)
    runner = ServiceRunner("registration", settings)
    metadata = sa.MetaData()
    inbox = Inbox(metadata)
    database = Database(settings.database_url.get_secret_value())
    runner.on_stop(database.close)
    with database.write() as connection:
        metadata.create_all(connection)  # one table that only remembers: nothing to migrate
    bus = make_bus(settings)
    runner.on_stop(bus.close)
    runner.prepare("ECHO_BUS_URL", lambda: bus.ensure_topics(ALL_TOPICS))
    http = httpx.Client(timeout=10.0, trust_env=False)
    runner.on_stop(http.close)
    registration = PatientRegistration(
        http, settings.fhir_base_url, settings.fhir_patient_systems, settings.fhir_default_patient_system
    )
    handlers = {STUDY_COMPLETED: registration.study_completed}
    runner.add_loop("consume", EventConsumer(bus, GROUP, handlers, database, inbox, SystemClock()).run)
    return runner.run({"database": database.ping, "bus": bus.ping})


if __name__ == "__main__":
    raise SystemExit(main())
