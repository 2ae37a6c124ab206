"""Parts of the composition root: TLS, the two doors, the archive that studies are fetched from.

A setting that cannot work ends the process with status 2 and a sentence that names it.
"""

from __future__ import annotations

import errno
import os
import ssl
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from prometheus_client import REGISTRY
from starlette.applications import Starlette

from dicom_listener.adapters.commitment_scp import CommitmentScp
from dicom_listener.adapters.commitments import PeerAddress
from dicom_listener.adapters.dimse_archive import DimseArchive, DimseOptions
from dicom_listener.adapters.processes import Books, Fork, ReceivingProcesses
from dicom_listener.adapters.scp import WAITING_ROOM, ScpOptions, StorageScp
from dicom_listener.adapters.stow import StowDoor, StowOptions
from dicom_listener.adapters.stow_server import StowServer
from dicom_listener.adapters.transport import TlsFiles, server_context, tls_words
from dicom_listener.adapters.web_archive import WebArchive, WebOptions
from dicom_listener.handlers.associations import Associations
from dicom_listener.handlers.receive import Receiver
from dicom_listener.handlers.refusals import RefusalBook
from dicom_listener.metrics import ProcessFigures
from dicom_listener.ports import Refusal
from dicom_listener.settings import Settings
from pipeline.clock import SystemClock
from pipeline.service import claim_port
from pipeline.store import ObjectStore


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


def free_bytes(store: ObjectStore) -> int:
    """Space left where an object needs it: in the staging folder, and in the store if it knows."""
    stat = os.statvfs(store.staging_dir())
    staging = stat.f_bavail * stat.f_frsize
    stored = store.free_bytes()
    return staging if stored is None else min(staging, stored)


def scp_options(settings: Settings, tls: ssl.SSLContext | None) -> ScpOptions:
    """Limits and names of the DICOM port."""
    return ScpOptions(
        host=settings.dicom_host,
        port=settings.dicom_port,
        ae_title=settings.ae_title,
        require_called_aet=settings.require_called_aet,
        maximum_associations=settings.maximum_associations,
        maximum_pdu_bytes=settings.maximum_pdu_bytes,
        maximum_object_bytes=settings.maximum_object_bytes,
        network_timeout_seconds=settings.network_timeout_seconds,
        request_timeout_seconds=settings.request_timeout_seconds,
        access=[peer.rule() for peer in settings.allowed_peers],
        tls=tls,
    )


def bind_scp(
    settings: Settings,
    forks: Sequence[Fork],
    receiver: Receiver,
    books: Books,
    store: ObjectStore,
    clock: SystemClock,
    tls: ssl.SSLContext | None,
) -> StorageScp | ReceivingProcesses:
    """The DICOM port, served by the forks if there are some; one that cannot be had ends the process with status 2."""
    try:
        if forks:
            REGISTRY.register(ProcessFigures({each.process.name: each.process.pid or 0 for each in forks}))
            return ReceivingProcesses(
                forks, books, settings.dicom_host, settings.dicom_port, settings.maximum_associations
            )
        return StorageScp(
            scp_options(settings, tls),
            receiver,
            books.associations,
            books.limits,
            books.refusals,
            store,
            clock,
            CommitmentScp(books.commitments, books.refusals, clock),
        )
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be bound ({error.strerror})"
        wrong_setting(
            "ECHO_DICOM_PORT",
            f"port {settings.dicom_port} on {settings.dicom_host} {why}; set another one or stop what uses it",
        )


def make_stow(
    settings: Settings,
    receiver: Receiver,
    associations: Associations,
    refusals: RefusalBook,
    store: ObjectStore,
    clock: SystemClock,
    tls: ssl.SSLContext | None,
) -> StowServer | None:
    """The STOW-RS server on its port, or None if it is off; a port that cannot be had ends the process (status 2)."""
    if settings.stow_port is None:
        return None
    options = StowOptions(
        ae_title=settings.stow_ae_title.strip(),
        called_ae_title=settings.ae_title.strip(),
        token=settings.stow_token.get_secret_value() if settings.stow_token is not None else None,
        maximum_requests=settings.maximum_associations,
        maximum_requests_per_peer=settings.maximum_associations_per_peer,
        maximum_request_bytes=settings.stow_maximum_bytes,
        maximum_object_bytes=settings.maximum_object_bytes,
        silence_seconds=settings.network_timeout_seconds,
        access=[peer.rule() for peer in settings.allowed_peers],
    )
    door = StowDoor(options, receiver, associations, refusals, store, clock)
    return StowServer(
        Starlette(routes=door.routes()),
        claim_port(settings.stow_host, settings.stow_port, "ECHO_STOW_PORT"),
        tls,
        lambda reason, address, detail: refusals.note(Refusal.of_stranger(reason, address, detail)),
        drain_seconds=settings.drain_seconds,
        head_seconds=settings.request_timeout_seconds,
        maximum_connections=settings.maximum_associations + WAITING_ROOM,
    )


def peer_addresses(settings: Settings) -> dict[str, PeerAddress]:
    """Where other application entities listen, by AE title."""
    return {title: PeerAddress(peer.host, peer.port, tls=peer.tls) for title, peer in settings.known_peers.items()}


def make_archive(
    settings: Settings, receiver: Receiver, associations: Associations, store: ObjectStore, clock: SystemClock
) -> DimseArchive | WebArchive | None:
    """The archive that studies are fetched from, or None if none is set."""
    if settings.fetch_ae_title is not None:
        return DimseArchive(
            DimseOptions(
                ae_title=settings.ae_title.strip(),
                archive_ae_title=settings.fetch_ae_title,
                address=peer_addresses(settings)[settings.fetch_ae_title],
                connect_seconds=settings.request_timeout_seconds,
                answer_seconds=settings.fetch_answer_seconds,
                tls=client_tls(settings),
            )
        )
    if settings.fetch_dicomweb_url is not None:
        token = settings.fetch_dicomweb_token
        options = WebOptions(
            base_url=settings.fetch_dicomweb_url,
            token=None if token is None else token.get_secret_value(),
            called_ae_title=settings.ae_title.strip(),
            maximum_object_bytes=settings.maximum_object_bytes,
            connect_seconds=settings.request_timeout_seconds,
            answer_seconds=settings.fetch_answer_seconds,
            tls=client_tls(settings),
        )
        return WebArchive(options, receiver, associations, store, clock)
    return None
