"""The two events that a delivery is made of. They may come in any order, and more than once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy.engine import Connection

from fhir_writer.domain.study import kept_study_data
from fhir_writer.ports import Deliveries
from pipeline.clock import Clock
from pipeline.events import REPORT_GENERATED, STUDY_COMPLETED, Event
from pipeline.telemetry import study_ref

log = logging.getLogger(__name__)


class Intake:
    """Handlers of the consumer group `fhir_writer`."""

    def __init__(self, deliveries: Deliveries, clock: Clock, wakeup: threading.Event) -> None:
        self._deliveries = deliveries
        self._clock = clock
        self._wakeup = wakeup

    def handlers(self) -> dict[str, Callable[[Connection, Event], None]]:
        """Event type -> handler."""
        return {STUDY_COMPLETED: self.study_completed, REPORT_GENERATED: self.report_generated}

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
            "delivery scheduled" if taken else "draft of an older version left aside",
            extra={
                "study": study_ref(event.subject),
                "version": event.data["study_version"],
                "job_id": event.data["job_id"],
            },
        )
        self._wakeup.set()
