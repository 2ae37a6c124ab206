"""The composition root of the whole: which child runs with which settings, and in which order."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import redis
import yaml
from kombu.exceptions import OperationalError

from pipeline.clock import SystemClock
from pipeline.http import HttpServer
from pipeline.service import claim_port, on_end_signals
from pipeline.telemetry import configure_logging
from standalone import valkey
from standalone.children import ChildFailed, ChildSpec, Supervisor, end_leftovers
from standalone.gateway import Gateway
from standalone.layout import DataDir, DataDirInUse

log = logging.getLogger(__name__)

VISIBILITY_TIMEOUT_S = 900
"""A task not acknowledged for this long starts again. A dead worker is noticed by the supervisor long before."""


@dataclass(frozen=True)
class ServeOptions:
    """What `python -m standalone serve` was asked for."""

    data_dir: Path
    dicom_port: int
    http_port: int
    host: str
    ae_title: str
    quiet_seconds: float
    model: str
    register_patients: str
    out_of_domain: str
    log_level: str


def _free_ports(names: Sequence[str]) -> dict[str, int]:
    """One for each, no two the same: all are held until the last is found."""
    ports = {}
    with contextlib.ExitStack() as held:
        for name in names:
            sock = held.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            ports[name] = sock.getsockname()[1]
    return ports


def _http_ready(port: int, path: str) -> bool:
    """Asked several times a second while everything starts: a bare request, a client library costs more than that."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _ehr_child(data: DataDir, port: int, public_url: str) -> ChildSpec:
    settings = data.ehr / "settings.yaml"
    settings.write_text(
        yaml.safe_dump(
            {
                "base_url": public_url,
                "host": "127.0.0.1",
                "port": port,
                "data_dir": str(data.ehr),
                "log_inbound": False,  # its traffic log would keep every request body for ever
                "simulator": {"enabled": False},
                "facility_name": "Embedded EHR",
            }
        )
    )
    return ChildSpec(
        name="ehr",
        argv=[str(Path(sys.executable).with_name("sekmet")), "serve", "-c", str(settings)],
        ready=lambda: _http_ready(port, "/fhir/metadata"),
    )


def _base_url(options: ServeOptions) -> str:
    """What a person on this machine types."""
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
    return f"http://{host}:{options.http_port}"


def _give_back_tasks(broker_url: str) -> None:
    """Before the only worker starts: its predecessor's unacknowledged tasks go back to their queues."""
    try:
        tasks = valkey.restore_unacknowledged(broker_url, VISIBILITY_TIMEOUT_S)
    except (OperationalError, redis.RedisError, OSError) as error:
        # The task queue is down, too: the visibility timeout or the dispatcher's deadline brings them back.
        log.warning("tasks could not be given back", extra={"error": type(error).__name__})
        return
    if tasks:
        log.info("tasks given back", extra={"tasks": tasks})


def plan(options: ServeOptions, data: DataDir) -> tuple[list[list[ChildSpec]], Mapping[str, str], Mapping[str, str]]:
    """Stages of children, the gateway's routes (path prefix -> base URL) and the services (name -> base URL)."""
    sock = data.socket_path()
    broker_url = f"redis+socket://{quote(str(sock))}"
    names = ["dicom_listener", "dispatcher", "inference_worker", "fhir_writer", "console"]
    if options.register_patients == "auto":
        names.append("registration")
    ports = _free_ports(["ehr", *names])
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    public_fhir = f"{_base_url(options)}/fhir"

    def service(name: str, **settings: str) -> ChildSpec:
        return ChildSpec(
            name=name,
            argv=[sys.executable, "-m", "standalone.registration" if name == "registration" else name],
            ready=lambda: _http_ready(ports[name], "/readyz"),
            env={
                "ECHO_LOG_LEVEL": options.log_level,
                "ECHO_HTTP_HOST": "127.0.0.1",
                "ECHO_HTTP_PORT": str(ports[name]),
                "ECHO_BUS_URL": data.database_url("bus"),
                "ECHO_DATABASE_URL": data.database_url(name),
                "ECHO_OBJECT_STORE_URL": f"file://{data.objects}",
                "ECHO_BROKER_URL": broker_url,
                "ECHO_VISIBILITY_TIMEOUT_S": str(VISIBILITY_TIMEOUT_S),
                "ECHO_FHIR_BASE_URL": f"{urls['ehr']}/fhir",
                "ECHO_FHIR_PUBLIC_URL": public_fhir,
                **settings,
            },
            before_start=(lambda: _give_back_tasks(broker_url)) if name == "inference_worker" else None,
        )

    settings: dict[str, dict[str, str]] = {
        "dicom_listener": {
            "ECHO_DICOM_HOST": options.host,
            "ECHO_DICOM_PORT": str(options.dicom_port),
            "ECHO_AE_TITLE": options.ae_title,
            "ECHO_QUIET_SECONDS": str(options.quiet_seconds),
        },
        "inference_worker": {"ECHO_MODEL": options.model},
        "fhir_writer": {"ECHO_OUT_OF_DOMAIN": options.out_of_domain},
        "console": {
            "ECHO_DICOM_HINT": f"AE title {options.ae_title}, host {options.host}, port {options.dicom_port}",
            "ECHO_DISPATCHER_URL": urls["dispatcher"],
            "ECHO_FHIR_WRITER_URL": urls["fhir_writer"],
        },
    }
    queue = ChildSpec(name="valkey", argv=valkey.server_argv(sock, data.valkey), ready=lambda: valkey.answers(sock))
    # All others start together: each waits by itself for what it needs.
    others = [_ehr_child(data, ports["ehr"], public_fhir)] + [service(name, **settings.get(name, {})) for name in names]
    routes = {
        "/fhir": urls["ehr"],
        **{f"/v1/{name}": urls["dispatcher"] for name in ("outstanding", "held", "jobs", "dead-letters", "pause")},
        "/v1/deliveries": urls["fhir_writer"],
        "/v1/fetch": urls["dicom_listener"],
        "/": urls["console"],
    }
    return [[queue], others], routes, {name: urls[name] for name in names}


def serve(options: ServeOptions) -> int:
    """Run everything until SIGTERM or SIGINT; exit status 0: drained, 1: a child failed, 2: wrong settings."""
    configure_logging("standalone", options.log_level, log_identifiers=False)
    data = DataDir(options.data_dir.resolve())
    try:
        data.create()
        lock = data.lock()
    except (DataDirInUse, OSError) as error:
        sys.stderr.write(f"cannot serve --data-dir {options.data_dir}: {error}\n")
        return 2
    if ended := end_leftovers(data.run):  # before the ports are looked at, which it may hold
        log.warning("ended what a killed supervisor had left", extra={"children": ended})
    http_socket = claim_port(options.host, options.http_port, "--http-port")
    claim_port(
        options.host, options.dicom_port, "--dicom-port"
    ).close()  # the listener binds it; say so early if it cannot

    clock, stop, ready = SystemClock(), threading.Event(), threading.Event()
    on_end_signals(stop.set)
    stages, routes, services = plan(options, data)
    server = HttpServer(Gateway(routes, services, ready).app(), http_socket)
    server.start()
    supervisor = Supervisor(clock, data.run, data.logs)
    status = 0
    try:
        # In the main thread: the children's parent-death signal follows the thread that started them.
        supervisor.start(stages, stop)
        if not stop.is_set():
            ready.set()
            base, dicom = _base_url(options), f"{options.ae_title}@{options.host}:{options.dicom_port}"
            log.info("ready", extra={"pid": os.getpid(), "console": f"{base}/", "fhir": f"{base}/fhir", "dicom": dicom})
        supervisor.watch(stop)
    except ChildFailed as error:
        sys.stderr.write(f"{error}\n")
        status = 1
    finally:
        ready.clear()
        log.info("stopping")
        supervisor.stop()
        server.stop()
        lock.close()
        log.info("stopped")
    return status
