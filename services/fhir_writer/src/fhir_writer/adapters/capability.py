"""Whether the FHIR server can do what this delivery mode needs: asked at start, kept, and asked again every hour."""

from __future__ import annotations

import logging
import threading

from prometheus_client import Gauge

from fhir_writer.adapters.fhir_http import Conflict, FhirHttp
from fhir_writer.domain.codes import Json
from fhir_writer.domain.outcome import DeliveryError, Refused
from pipeline.clock import Clock

log = logging.getLogger(__name__)

SUITABLE = Gauge("echo_fhir_capability_ok", "1 when the server's CapabilityStatement fits, 0 when not, -1 when unknown")
_AGAIN_S = 3600.0


def unsuitable(statement: Json) -> str | None:
    """Why a CapabilityStatement does not fit mode A; None when it does."""
    version = str(statement.get("fhirVersion", ""))
    if not version.startswith("4.0"):
        return f"its FHIR version is {version[:20] or 'not stated'}, needed is 4.0"
    interactions = {
        interaction.get("code")
        for rest in statement.get("rest") or ()
        if rest.get("mode") == "server"
        for interaction in rest.get("interaction") or ()
    }
    return None if "transaction" in interactions else "it does not offer transactions"


class Capability:
    """The answer of `/metadata`. A server that is away is no reason not to start."""

    def __init__(self, fhir: FhirHttp, clock: Clock) -> None:
        self._fhir = fhir
        self._clock = clock
        self._problem: str | None = None
        SUITABLE.set(-1)

    def refuse_if_unsuitable(self) -> None:
        """Raise `Refused("ehr_unsuitable")` when the server has said that it cannot do what is needed."""
        if self._problem is not None:
            raise Refused("ehr_unsuitable", f"The FHIR server cannot be used: {self._problem}.")

    def check(self) -> None:
        """Ask once. Raises `DeliveryError` when the server gives no answer."""
        statement = self._fhir.metadata()
        self._problem = unsuitable(statement)
        SUITABLE.set(self._problem is None)
        software = statement.get("software") or {}
        log.log(
            logging.INFO if self._problem is None else logging.ERROR,
            "FHIR server's capabilities",
            extra={
                "fhir_version": statement.get("fhirVersion"),
                "software": software.get("name"),
                "software_version": software.get("version"),
                "problem": self._problem,
            },
        )

    def run(self, stop: threading.Event) -> None:
        """Ask until there is an answer, then every hour: servers are upgraded."""
        failures = 0
        while not stop.is_set():
            try:
                self.check()
                failures = 0
                pause = _AGAIN_S
            except (DeliveryError, Conflict) as error:
                failures += 1
                pause = min(60.0, 2.0**failures)
                log.warning(
                    "FHIR server's capabilities unknown",
                    extra={"error": getattr(error, "code", type(error).__name__), "failures": failures},
                )
            self._clock.wait(stop, pause)
