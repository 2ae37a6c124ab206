"""The composition root: builds everything from the settings and runs it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from prometheus_client import Gauge

from fhir_writer.adapters.capability import Capability
from fhir_writer.adapters.fhir_http import FhirHttp
from fhir_writer.adapters.http_api import delivery_routes
from fhir_writer.adapters.schedule import STATES, SqlDeliveries
from fhir_writer.adapters.tables import inbox, outbox
from fhir_writer.adapters.transaction_destination import TransactionDestination
from fhir_writer.domain.resources import Site
from fhir_writer.domain.schedule import CircuitBreaker, RetryPolicy
from fhir_writer.handlers.delivery import DeliverReport
from fhir_writer.handlers.intake import Intake
from fhir_writer.handlers.loop import DeliveryLoop
from fhir_writer.settings import Settings
from pipeline.buses import make_bus
from pipeline.clock import Clock, SystemClock
from pipeline.consume import EventConsumer
from pipeline.database import Database, is_transient
from pipeline.events import ALL_TOPICS
from pipeline.outbox import OutboxRelay
from pipeline.service import ServiceRunner
from pipeline.settings import load_settings

log = logging.getLogger(__name__)

GROUP = "fhir_writer"
DESCRIPTION = "Delivers draft reports to the EHR as FHIR R4 DiagnosticReports, exactly one a study."
DELIVERIES = Gauge(
    "echo_fhir_deliveries",
    "Studies by the state of their delivery; those delivered or withdrawn are counted once an hour",
    ["state"],
)
_COUNT_ALL_S = 3600.0
_EXPIRY_S = 3600.0
_EXPIRE_BATCH = 200


def retry_policy(settings: Settings) -> RetryPolicy:
    """The pauses that the settings ask for."""
    return RetryPolicy(
        first_s=settings.retry_first_s,
        longest_s=settings.retry_longest_s,
        patient_grace_s=settings.patient_match_grace_seconds,
        patient_recheck_s=settings.patient_recheck_seconds,
    )


def fhir_client(settings: Settings) -> FhirHttp:
    """The connection to the EHR; credentials only for the way of authentication that is set."""
    auth = settings.fhir_auth
    token, password = settings.fhir_token, settings.fhir_password
    return FhirHttp(
        settings.fhir_base_url,
        token=token.get_secret_value() if auth == "bearer" and token else None,
        user=settings.fhir_user if auth == "basic" else None,
        password=password.get_secret_value() if auth == "basic" and password else None,
        ca_file=settings.fhir_ca_file,
        verify_tls=settings.fhir_verify_tls,
        timeout_s=settings.fhir_timeout_s,
        connections=settings.delivery_threads + 1,
    )


def destination(settings: Settings, fhir: FhirHttp, capability: Capability) -> TransactionDestination:
    """Delivery mode A."""
    return TransactionDestination(
        fhir,
        capability,
        Site(
            organisation_name=settings.organisation_name,
            report_status=settings.fhir_report_status,
            zone=ZoneInfo(settings.site_timezone),
            security_label=settings.fhir_security_label,
            accession_system=settings.fhir_accession_system,
        ),
        patient_systems=settings.fhir_patient_systems,
        default_patient_system=settings.fhir_default_patient_system,
        link_orders=settings.fhir_link_orders,
    )


class Housekeeping:
    """Renews the leases of what is being delivered, counts for the metrics, and deletes what ended before `keep`."""

    def __init__(self, deliveries: SqlDeliveries, clock: Clock, lease_s: float, keep: timedelta | None) -> None:
        self._deliveries = deliveries
        self._clock = clock
        self._pause_s = lease_s / 4
        self._next_full_count = 0.0
        self._keep = keep
        self._next_expiry = 0.0

    def _expire(self) -> None:
        """A small step each time, so that leases are renewed meanwhile; an hour's pause when nothing is left."""
        if self._keep is None or self._clock.monotonic() < self._next_expiry:
            return
        now = self._clock.now()
        gone = self._deliveries.expire(now - self._keep, _EXPIRE_BATCH, now)
        if gone < _EXPIRE_BATCH:
            self._next_expiry = self._clock.monotonic() + _EXPIRY_S
        if gone:
            log.info("old deliveries deleted", extra={"rows": gone})

    def _count(self) -> None:
        """Those that are delivered grow without end, so they are counted seldom."""
        full = self._clock.monotonic() >= self._next_full_count
        if full:
            self._next_full_count = self._clock.monotonic() + _COUNT_ALL_S
        for state, count in self._deliveries.counts(STATES if full else ("pending", "parked")).items():
            DELIVERIES.labels(state=state).set(count)

    def run(self, stop: threading.Event) -> None:
        """Until stopped; a database that is away is waited for."""
        while not self._clock.wait(stop, self._pause_s):
            try:
                self._deliveries.renew_leases(self._clock.now())
                self._count()
                self._expire()
            except Exception as error:
                if not is_transient(error):
                    raise
                log.warning("leases not renewed", extra={"error": type(error).__name__})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service; returns its exit status."""
    settings = load_settings(Settings, DESCRIPTION, argv)
    runner = ServiceRunner("fhir-writer", settings)
    clock = SystemClock()
    database = Database(settings.database_url.get_secret_value())
    runner.on_stop(database.close)
    runner.prepare("ECHO_DATABASE_URL", lambda: database.migrate(Path(__file__).parent / "migrations"))
    bus = make_bus(settings)
    runner.on_stop(bus.close)
    runner.prepare("ECHO_BUS_URL", lambda: bus.ensure_topics(ALL_TOPICS))
    producer = bus.producer()
    runner.on_stop(producer.close)
    fhir = fhir_client(settings)
    runner.on_stop(fhir.close)

    if not settings.fhir_base_url.startswith("https://"):
        log.warning("the FHIR server is spoken to without encryption")
    wakeup = threading.Event()
    capability = Capability(fhir, clock)
    deliveries = SqlDeliveries(database, outbox, settings.delivery_lease_s)
    if database.is_sqlite:
        deliveries.drop_all_leases()
    deliver = DeliverReport(
        deliveries,
        destination(settings, fhir, capability),
        clock,
        policy=retry_policy(settings),
        breaker=CircuitBreaker(settings.breaker_failures, settings.breaker_open_s),
        fhir_server=settings.fhir_public_url or settings.fhir_base_url,
        park_out_of_domain=settings.out_of_domain == "park",
    )
    intake = Intake(deliveries, clock, wakeup)
    keep = timedelta(days=settings.retain_deliveries_days) if settings.retain_deliveries_days else None
    runner.add_loop("consume", EventConsumer(bus, GROUP, intake.handlers(), database, inbox, clock).run)
    runner.add_loop("relay", OutboxRelay(database, outbox, producer, clock).run)
    runner.add_loop("deliver", DeliveryLoop(deliveries, deliver, clock, wakeup, settings.delivery_threads).run)
    runner.add_loop("leases", Housekeeping(deliveries, clock, settings.delivery_lease_s, keep).run)
    runner.add_loop("capability", capability.run)
    # Whether the EHR answers is no part of being ready: without it events are still taken and nothing is lost.
    return runner.run({"database": database.ping, "bus": bus.ping}, delivery_routes(deliveries, clock, wakeup))
