"""The composition root: builds the listener from its settings and runs it."""

from __future__ import annotations

import errno
import logging
import os
import ssl
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from dicom_listener.adapters.commitment_scp import CommitmentScp
from dicom_listener.adapters.commitments import DimseReporter, PeerAddress, SqlCommitments
from dicom_listener.adapters.ledger import SqlLedger
from dicom_listener.adapters.object_index import SqlObjectIndex
from dicom_listener.adapters.scp import ScpOptions, StorageScp
from dicom_listener.adapters.staging import clear_leftovers
from dicom_listener.adapters.tables import outbox
from dicom_listener.adapters.transport import TlsFiles, server_context, tls_words
from dicom_listener.domain.completeness import Rules
from dicom_listener.domain.watermark import Watermark
from dicom_listener.handlers.associations import Associations
from dicom_listener.handlers.commit import CommitmentLoop
from dicom_listener.handlers.complete import CompletenessLoop
from dicom_listener.handlers.receive import Receiver
from dicom_listener.handlers.refusals import RefusalBook
from dicom_listener.handlers.sweep import Sweeper, UnderWay
from dicom_listener.settings import Settings
from pipeline.buses import make_bus
from pipeline.clock import SystemClock
from pipeline.database import Database
from pipeline.events import ALL_TOPICS
from pipeline.outbox import OutboxRelay
from pipeline.service import ServiceRunner
from pipeline.settings import load_settings
from pipeline.store import ObjectStore, make_object_store

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"


def free_bytes(store: ObjectStore) -> int:
    """Space left where an object needs it: in the staging folder, and in the store if it knows."""
    stat = os.statvfs(store.staging_dir())
    staging = stat.f_bavail * stat.f_frsize
    stored = store.free_bytes()
    return staging if stored is None else min(staging, stored)


def server_tls(settings: Settings) -> ssl.SSLContext | None:
    """TLS of the DICOM port; files that cannot be used end the process with status 2."""
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    checks: list[tuple[str, str]] = [
        ("ECHO_TLS_CERTIFICATE_FILE", settings.tls_certificate_file),
        ("ECHO_TLS_KEY_FILE", settings.tls_key_file),
    ]
    if settings.tls_client_ca_file is not None:
        checks.append(("ECHO_TLS_CLIENT_CA_FILE", settings.tls_client_ca_file))
    for name, path in checks:
        try:
            Path(path).read_bytes()
        except OSError as error:
            wrong_setting(name, f"is {path!r}; {error.strerror}")
    files = TlsFiles(settings.tls_certificate_file, settings.tls_key_file)
    try:
        server_context(files)
    except OSError as error:
        wrong_setting(
            "ECHO_TLS_CERTIFICATE_FILE",
            f"{settings.tls_certificate_file!r} and ECHO_TLS_KEY_FILE {settings.tls_key_file!r} are not a PEM "
            f"certificate and its unencrypted private key ({tls_words(error)})",
        )
    try:
        return server_context(replace(files, client_ca_file=settings.tls_client_ca_file))
    except OSError as error:
        wrong_setting(
            "ECHO_TLS_CLIENT_CA_FILE",
            f"{settings.tls_client_ca_file!r} holds no certificate of an authority ({tls_words(error)})",
        )


def client_tls(settings: Settings) -> ssl.SSLContext:
    """TLS towards other application entities, with our own certificate; their certificates must hold."""
    context = ssl.create_default_context(cafile=settings.tls_client_ca_file)
    if settings.tls_certificate_file is not None:
        context.load_cert_chain(settings.tls_certificate_file, settings.tls_key_file)
    return context


def wrong_setting(name: str, what: str) -> NoReturn:
    """End the process with status 2 and a sentence."""
    sys.stderr.write(f"wrong setting {name}: {what}\n")
    raise SystemExit(2)


def bind_scp(
    settings: Settings,
    receiver: Receiver,
    associations: Associations,
    refusals: RefusalBook,
    store: ObjectStore,
    clock: SystemClock,
    commitment: CommitmentScp,
    tls: ssl.SSLContext | None,
) -> StorageScp:
    """The SCP on its port; a port that cannot be had ends the process with status 2."""
    options = ScpOptions(
        host=settings.dicom_host,
        port=settings.dicom_port,
        ae_title=settings.ae_title,
        require_called_aet=settings.require_called_aet,
        maximum_associations=settings.maximum_associations,
        maximum_associations_per_peer=settings.maximum_associations_per_peer,
        maximum_pdu_bytes=settings.maximum_pdu_bytes,
        maximum_object_bytes=settings.maximum_object_bytes,
        network_timeout_seconds=settings.network_timeout_seconds,
        request_timeout_seconds=settings.request_timeout_seconds,
        access=[peer.rule() for peer in settings.allowed_peers],
        tls=tls,
    )
    try:
        return StorageScp(options, receiver, associations, refusals, store, clock, commitment)
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be bound ({error.strerror})"
        wrong_setting(
            "ECHO_DICOM_PORT",
            f"port {settings.dicom_port} on {settings.dicom_host} {why}; set another one or stop what uses it",
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service until it is told to stop; returns the exit status."""
    settings = load_settings(
        Settings, "Receives DICOM objects (C-STORE), keeps them and announces completed studies.", argv
    )
    runner = ServiceRunner("dicom-listener", settings)
    clock = SystemClock()
    database = Database(settings.database_url.get_secret_value())
    runner.on_stop(database.close)
    database.migrate(MIGRATIONS)
    store = make_object_store(settings)
    leftovers = clear_leftovers(store.staging_dir())
    if leftovers:
        log.info("half received objects of an earlier process removed", extra={"files": leftovers})
    bus = make_bus(settings)
    runner.on_stop(bus.close)
    bus.ensure_topics(ALL_TOPICS)
    producer = bus.producer()
    runner.on_stop(producer.close)

    associations = Associations()
    ledger = SqlLedger(database, settings.duplicate_policy)
    rules = Rules(settings.quiet_seconds, settings.release_seconds, settings.maximum_age_seconds)
    refusals = RefusalBook(ledger, clock)
    under_way = UnderWay()
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
        Watermark(settings.min_free_bytes, settings.resume_free_bytes),
        lambda: free_bytes(store),
    )
    completeness = CompletenessLoop(ledger, associations, rules, clock)
    completeness.adopt()
    tls = server_tls(settings)
    commitments = SqlCommitments(database)
    peers = {title: PeerAddress(peer.host, peer.port, tls=peer.tls) for title, peer in settings.known_peers.items()}
    reporter = DimseReporter(peers, client_tls(settings), settings.request_timeout_seconds)
    committing = CommitmentLoop(commitments, store, reporter, refusals, clock)
    commitment = CommitmentScp(commitments, reporter, committing, refusals, clock)
    scp = bind_scp(settings, receiver, associations, refusals, store, clock, commitment, tls)

    runner.add_loop("completeness", completeness.run)
    runner.add_loop("sweep", sweeper.run)
    runner.add_loop("commitment", committing.run)
    runner.add_loop("refusals", refusals.run)
    runner.add_loop("outbox", OutboxRelay(database, outbox, producer, clock).run)

    def listen() -> None:
        scp.start()
        log.info("listening", extra={"dicom_port": scp.port, "ae_title": settings.ae_title})

    return runner.run(
        {"database": database.ping, "object_store": store.ping, "dicom_port": scp.check},
        on_ready=listen,
        before_join=lambda: scp.drain(settings.drain_seconds),
        ready_fields={"dicom_port": scp.port},
    )
