"""Delivery mode A: one transaction with a condition on every entry, for any R4 server that takes transactions."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping

from fhir_writer.adapters.capability import Capability
from fhir_writer.adapters.fhir_http import Conflict, FhirHttp
from fhir_writer.domain import codes, patient, resources, rules
from fhir_writer.domain.codes import Json
from fhir_writer.domain.outcome import Delivered, Overtaken, Refused, Unavailable
from fhir_writer.domain.resources import Site
from fhir_writer.domain.study import Draft, StudyFacts
from fhir_writer.domain.transaction import Existing, Plan, known_observation_identifiers, plan
from pipeline.telemetry import study_ref

log = logging.getLogger(__name__)

_READS = 4
_LOCATION = re.compile(r"(?:^|/)DiagnosticReport/([A-Za-z0-9.-]{1,64})/_history/([A-Za-z0-9.-]{1,64})$")


class TransactionDestination:
    """Implements `ports.Destination`. Reads first, so that an answer lost on the way is found and not sent again."""

    def __init__(
        self,
        fhir: FhirHttp,
        capability: Capability,
        site: Site,
        *,
        patient_systems: Mapping[str, str],
        default_patient_system: str,
        link_orders: bool,
    ) -> None:
        self._fhir = fhir
        self._capability = capability
        self._site = site
        self._patient_systems = dict(patient_systems)
        self._default_patient_system = default_patient_system
        self._link_orders = link_orders

    def deliver(self, study: StudyFacts, draft: Draft, still_due: Callable[[], bool]) -> Delivered:
        """See `ports.Destination`."""
        self._capability.refuse_if_unsuitable()
        patient_reference = f"Patient/{self._patient(study)}"
        order = self._order(study, patient_reference)
        for _ in range(_READS):
            existing = self._existing(study, draft)
            planned = plan(study, draft, self._site, patient_reference, order, existing, self._fhir.base_url)
            if planned.bundle is None:
                assert existing.report is not None
                return Delivered(existing.report["id"], existing.report["meta"]["versionId"], "unchanged")
            if not still_due():
                raise Overtaken
            delivered = self._send(study, planned, creating=existing.report is None)
            if delivered is not None:
                return delivered
        raise Unavailable("ehr_conflict", "The report at the FHIR server kept changing while it was being written.")

    def _patient(self, study: StudyFacts) -> str:
        wanted = patient.required_patient_id(study.patient)
        system = patient.identifier_system(study.patient.issuer, self._patient_systems, self._default_patient_system)
        hits = self._fhir.search("Patient", {"identifier": f"{system}|{_escaped(wanted)}", "_count": "10"})
        return patient.match(study.patient, system, hits)

    def _order(self, study: StudyFacts, patient_reference: str) -> str | None:
        """The one ServiceRequest of this patient with the accession number, when the EHR lets us find it."""
        if not self._link_orders or study.accession_number is None:
            return None
        system = f"{self._site.accession_system}|" if self._site.accession_system else ""
        try:
            found = self._fhir.search(
                "ServiceRequest",
                {
                    "identifier": system + _escaped(study.accession_number),
                    "subject": patient_reference,
                    "_count": "3",
                },
            )
        except Refused as error:
            # Without rights to read orders the report is still complete: it names the order by accession number.
            log.info("orders cannot be searched", extra={"code": error.code, "http_status": error.http_status})
            return None
        mine = [
            order for order in found if study.accession_number in {i.get("value") for i in order.get("identifier", ())}
        ]
        return f"ServiceRequest/{mine[0]['id']}" if len(mine) == 1 else None

    def _existing(self, study: StudyFacts, draft: Draft) -> Existing:
        report = self._report(study)
        observations = self._by_identifier(
            "Observation", codes.OBSERVATION_SYSTEM, known_observation_identifiers(study, draft)
        )
        by_value: dict[str, Json] = {}
        for value, resource in observations:
            if value in by_value:
                raise Refused("duplicate_report", "The FHIR server has a finding of this study twice.")
            by_value[value] = resource
        if report is None and by_value:  # written by another delivery between the two searches
            report = self._report(study)
        return Existing(report, by_value, self._device(draft))

    def _device(self, draft: Draft) -> str | None:
        """All studies share it: where a race made it twice, a conditional create would fail for every report."""
        try:
            found = self._by_identifier("Device", codes.DEVICE_SYSTEM, [resources.device_identifier(draft)])
        except Refused as error:  # without rights to search there is still the conditional create
            log.info("devices cannot be searched", extra={"code": error.code, "http_status": error.http_status})
            return None
        return min((device["id"] for _, device in found), default=None)

    def _report(self, study: StudyFacts) -> Json | None:
        wanted = resources.report_identifier(study.study_instance_uid)
        found = self._by_identifier("DiagnosticReport", codes.REPORT_SYSTEM, [wanted])
        if len(found) > 1:
            raise Refused("duplicate_report", "The FHIR server has more than one report of this study from us.")
        return found[0][1] if found else None

    def _by_identifier(self, kind: str, system: str, values: list[str]) -> list[tuple[str, Json]]:
        tokens = ",".join(f"{system}|{value}" for value in values)
        found = []
        for resource in self._fhir.search(kind, {"identifier": tokens, "_count": "100"}):
            for identifier in resource.get("identifier", ()):
                if identifier.get("system") == system and identifier.get("value") in values:
                    found.append((identifier["value"], resource))
        return found

    def _send(self, study: StudyFacts, planned: Plan, *, creating: bool) -> Delivered | None:
        """Delivered, or None when the server's state is not what the plan was made for."""
        assert planned.bundle is not None
        broken = rules.breaches(planned.bundle)
        if broken:
            log.error(
                "report breaks our own rules",
                extra={"study": study_ref(study.study_instance_uid), "breaches": broken[:10]},
            )
            said = "The report breaks a rule and was not sent: " + "; ".join(broken)
            raise Refused("invalid_resource", said[:1000])
        try:
            responses = self._fhir.transaction(planned.bundle)
        except Conflict:
            return None
        response = responses[planned.report_entry]
        if creating and not str(response.get("status", "")).startswith("201"):
            return None  # another delivery was first; its content may differ from ours
        place = _LOCATION.search(str(response.get("location", "")))
        if place is None:
            return None  # the server does not say where: the next read finds it unchanged
        return Delivered(place.group(1), place.group(2), "created" if creating else "updated")


def _escaped(value: str) -> str:
    """A search parameter's value with `,`, `|`, `$` and backslash escaped (hl7.org/fhir/R4/search.html#escaping)."""
    return re.sub(r"([\\,|$])", r"\\\1", value)
