"""The composition root: builds the listener from its settings and runs it."""

from __future__ import annotations

import logging
import mmap
import threading
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

from dicom_listener.adapters.allocator import settle_allocator
from dicom_listener.adapters.commitment_scp import CommitmentDesk
from dicom_listener.adapters.commitments import DimseReporter, SqlCommitments
from dicom_listener.adapters.fetch_routes import fetch_routes
from dicom_listener.adapters.fetches import SqlFetches
from dicom_listener.adapters.key_locks import KeyLocks
from dicom_listener.adapters.ledger import SqlLedger
from dicom_listener.adapters.object_index import SqlObjectIndex
from dicom_listener.adapters.processes import Books, Fork, ReceivingProcesses, fork
from dicom_listener.adapters.staging import clear_leftovers
from dicom_listener.adapters.tables import outbox
from dicom_listener.assembly import (
    bind_scp,
    client_tls,
    free_bytes,
    make_archive,
    make_stow,
    peer_addresses,
    server_tls,
)
from dicom_listener.domain.completeness import Rules
from dicom_listener.domain.watermark import Watermark
from dicom_listener.handlers.associations import Associations
from dicom_listener.handlers.commit import CommitmentLoop
from dicom_listener.handlers.complete import CompletenessLoop
from dicom_listener.handlers.fetch import FetchLoop
from dicom_listener.handlers.limits import AssociationLimits
from dicom_listener.handlers.receive import Receiver
from dicom_listener.handlers.refusals import RefusalBook
from dicom_listener.handlers.sweep import Sweeper
from dicom_listener.receiving import receive
from dicom_listener.settings import Settings
from pipeline.bus import Bus
from pipeline.buses import make_bus
from pipeline.clock import SystemClock
from pipeline.database import Database
from pipeline.errors import BusUnavailable
from pipeline.events import ALL_TOPICS
from pipeline.http import Check
from pipeline.outbox import OutboxRelay
from pipeline.service import ServiceRunner
from pipeline.settings import load_settings
from pipeline.store import make_object_store

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
_FETCHERS = 2  # a fetch that waits for a slow archive must not hold up an urgent one


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service until it is told to stop; returns the exit status."""
    settings = load_settings(
        Settings, "Receives DICOM objects (C-STORE), keeps them and announces completed studies.", argv
    )
    settle_allocator()
    under_way = KeyLocks()
    # Anonymous memory, so that all receiving processes refuse or none does.
    watermark = Watermark(settings.min_free_bytes, settings.resume_free_bytes, memoryview(mmap.mmap(-1, 1)))
    # Before there is a thread, a connection or a port that they would inherit.
    forks = (
        []
        if settings.receiving_processes == 1
        else fork(settings.receiving_processes, partial(receive, settings, under_way, watermark))
    )
    try:
        return serve(settings, under_way, watermark, forks)
    finally:
        for each in forks:  # they would keep a start that failed from ending
            each.process.kill()


def make_topics(bus: Bus) -> bool:
    """False while the bus is away: objects are received all the same, and their events wait in the outbox."""
    try:
        bus.ensure_topics(ALL_TOPICS)
    except BusUnavailable as error:
        log.warning("events wait for the bus", extra={"reason": str(error)})
        return False
    return True


def serve(settings: Settings, under_way: KeyLocks, watermark: Watermark, forks: Sequence[Fork]) -> int:
    """Build everything and run it; returns the exit status."""
    runner = ServiceRunner("dicom-listener", settings)
    clock = SystemClock()
    database = Database(settings.database_url.get_secret_value())
    runner.on_stop(database.close)
    runner.prepare("ECHO_DATABASE_URL", lambda: database.migrate(MIGRATIONS))
    store = make_object_store(settings)
    leftovers = clear_leftovers(store.staging_dir())
    if leftovers:
        log.info("half received objects of an earlier process removed", extra={"files": leftovers})
    bus = make_bus(settings)
    runner.on_stop(bus.close)
    has_topics = runner.prepare("ECHO_BUS_URL", partial(make_topics, bus))
    producer = bus.producer()
    runner.on_stop(producer.close)

    associations = Associations()
    ledger = SqlLedger(database, settings.duplicate_policy)
    rules = Rules(settings.quiet_seconds, settings.release_seconds, settings.maximum_age_seconds)
    refusals = RefusalBook(ledger, clock)
    runner.on_stop(refusals.close)
    sweeper = Sweeper(
        store,
        SqlObjectIndex(database, clock),
        under_way,
        clock,
        orphan_grace=timedelta(seconds=settings.orphan_grace_seconds),
        keep_objects=timedelta(days=settings.retain_days) if settings.retain_days else None,
        keep_refusals=timedelta(days=settings.retain_refusals_days),
        interval=timedelta(seconds=settings.sweep_seconds),
    )
    receiver = Receiver(
        store,
        ledger,
        associations,
        refusals,
        under_way,
        clock,
        watermark,
        lambda: free_bytes(store),
        settings.storage_classes,
    )
    completeness = CompletenessLoop(ledger, associations, rules, clock)
    completeness.adopt()
    tls = server_tls(settings)
    commitments = SqlCommitments(database)
    reporter = DimseReporter(peer_addresses(settings), client_tls(settings), settings.request_timeout_seconds)
    committing = CommitmentLoop(commitments, store, reporter, refusals, clock)
    books = Books(
        record=ledger.record_each,
        limits=AssociationLimits(settings.maximum_associations, settings.maximum_associations_per_peer),
        associations=associations,
        refusals=refusals,
        commitments=CommitmentDesk(commitments, reporter, committing),
    )
    scp = bind_scp(settings, forks, receiver, books, store, clock, tls)
    stow = make_stow(settings, receiver, associations, refusals, store, clock, tls)

    fetches = SqlFetches(database)
    archive = make_archive(settings, receiver, associations, store, clock)
    news = threading.Event()
    if archive is not None:
        runner.on_stop(archive.close)
        fetching = FetchLoop(fetches, archive, news, clock, attempts=settings.fetch_attempts)
        fetches.adopt(clock.now())
        for number in range(_FETCHERS):
            runner.add_loop(f"fetch-{number}", fetching.run)

    if isinstance(scp, ReceivingProcesses):
        runner.add_loop("receiving", scp.run)
    runner.add_loop("completeness", completeness.run)
    runner.add_loop("sweep", sweeper.run)
    runner.add_loop("commitment", committing.run)
    runner.add_loop("refusals", refusals.run)
    relay = OutboxRelay(database, outbox, producer, clock)

    def announce(stop: threading.Event) -> None:
        while not (has_topics or make_topics(bus)) and not stop.is_set():
            clock.wait(stop, 2.0)
        relay.run(stop)

    runner.add_loop("outbox", announce)

    checks: dict[str, Check] = {"database": database.ping, "object_store": store.ping, "dicom_port": scp.check}
    ready_fields = {"dicom_port": scp.port}
    if stow is not None:
        checks["stow_port"] = stow.check
        ready_fields["stow_port"] = stow.port

    def listen() -> None:
        scp.start()
        if stow is not None:
            stow.start()
        log.info("listening", extra={"dicom_port": scp.port, "ae_title": settings.ae_title})

    def drain() -> None:
        if archive is not None:
            archive.interrupt()
        reporter.interrupt()
        if stow is not None:
            stow.close()
        scp.drain(settings.drain_seconds)
        if stow is not None:
            stow.join()

    routes = fetch_routes(fetches, clock, news.set, is_on=archive is not None)
    return runner.run(checks, routes, on_ready=listen, before_join=drain, ready_fields=ready_fields)
