"""The two events that a delivery is made of, and the one that takes it back; in any order, and more than once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy.engine import Connection

from fhir_writer.domain.study import kept_study_data
from fhir_writer.ports import Deliveries
from pipeline.clock import Clock
from pipeline.events import REPORT_GENERATED, REPORT_REJECTED, STUDY_COMPLETED, STUDY_SKIPPED, Event, study_event
from pipeline.telemetry import study_ref

log = logging.getLogger(__name__)

SOURCE = "/fhir_writer"


class Intake:
    """Handlers of the consumer group `fhir_writer`."""

    def __init__(self, deliveries: Deliveries, clock: Clock, wakeup: threading.Event) -> None:
        self._deliveries = deliveries
        self._clock = clock
        self._wakeup = wakeup

    def handlers(self) -> dict[str, Callable[[Connection, Event], None]]:
        """Event type -> handler."""
        return {
            STUDY_COMPLETED: self.study_completed,
            REPORT_GENERATED: self.report_generated,
            STUDY_SKIPPED: self.study_skipped,
        }

    def study_completed(self, connection: Connection, event: Event) -> None:
        """Keep the identifiers that the patient and the order are matched by."""
        self._deliveries.keep_study(
            connection, event.data["study_version"], kept_study_data(event.data), self._clock.now()
        )
        self._wakeup.set()

    def report_generated(self, connection: Connection, event: Event) -> None:
        """Schedule the delivery; nothing is sent inside the consumer's transaction."""
        taken = self._deliveries.schedule(connection, event, self._clock.now())
        log.info(
            "delivery scheduled" if taken else "draft of an older or withdrawn version left aside",
            extra={
                "study": study_ref(event.subject),
                "version": event.data["study_version"],
                "job_id": event.data["job_id"],
            },
        )
        self._wakeup.set()

    def study_skipped(self, connection: Connection, event: Event) -> None:
        """Withdraw an older version's draft that is not delivered; what is in the EHR stays, for a person verifies it.

        The newer version's images are why there is to be no report, or none before a person has decided.
        """
        uid, version, now = event.subject, event.data["study_version"], self._clock.now()
        withdrawn = self._deliveries.withdraw(connection, uid, version, now)
        if withdrawn is None:
            return
        log.info(
            "draft withdrawn",
            extra={"study": study_ref(uid), "version": withdrawn.study_version, "job_id": withdrawn.job_id},
        )
        why = "is held for a person" if event.data.get("person_must_act") else "gets no report"
        told = {
            "job_id": withdrawn.job_id,
            "reason": {"code": "withdrawn", "text": f"Version {version} of the study {why}: this draft was withdrawn."},
            "http_status": None,
            "operation_outcome": None,
            "person_must_act": False,
            "next_attempt_at": None,
        }
        self._deliveries.tell(connection, study_event(REPORT_REJECTED, SOURCE, uid, withdrawn.study_version, now, told))
