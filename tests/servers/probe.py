"""Whether a real server answers, asked in its own protocol. Standard library only.

`python3 -m servers.probe NAME` (in this folder's parent) prints one line and exits 0 if the server is ready, 1 if not;
with `--wait SECONDS --pid PID` it waits until then, and gives up early when the process is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import struct
import sys
import time
import urllib.parse
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import BinaryIO

from servers import env

CONNECT_S = 2.0
ANSWER_S = 10.0


class NotReady(Exception):
    """The server does not answer, or not as that server should; the message says what was seen."""


def _connect(host: str | None, port: int | None, default_port: int) -> socket.socket:
    connection = socket.create_connection((host or "127.0.0.1", port or default_port), CONNECT_S)
    if connection.getsockname() == connection.getpeername():
        # TCP lets a socket meet itself on a free port of the range that outgoing connections are given
        connection.close()
        raise NotReady("refused: the connection met itself")
    connection.settimeout(ANSWER_S)
    return connection


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise NotReady("the connection was closed")
    return data


def _get_json(url: str) -> dict[str, object]:
    parts = urllib.parse.urlsplit(url)
    http = HTTPConnection(parts.hostname or "", parts.port)
    http.sock = _connect(parts.hostname, parts.port, 80)
    with contextlib.closing(http):
        http.request("GET", f"{parts.path}?{parts.query}", headers={"Accept": "application/json"})
        answer = http.getresponse()
        if answer.status != 200:
            raise NotReady(f"{url} answered {answer.status}")
        loaded = json.load(answer)
    if not isinstance(loaded, dict):
        raise NotReady(f"{url} answered something else than a JSON object")
    return loaded


def postgres() -> str:
    """Log in as the test user, up to "ready for query" (PostgreSQL protocol 3.0, message flow of section 55.2)."""
    url = urllib.parse.urlsplit(env.postgres_url())
    parameters = {"user": url.username or "", "database": url.path.lstrip("/")}
    text = b"".join(f"{key}\0{value}\0".encode() for key, value in parameters.items()) + b"\0"
    with _connect(url.hostname, url.port, 5432) as connection, connection.makefile("rb") as stream:
        connection.sendall(struct.pack(">ii", len(text) + 8, 196608) + text)
        version = ""
        while True:
            kind, length = struct.unpack(">ci", _exactly(stream, 5))
            body = _exactly(stream, length - 4)
            if kind == b"E":
                raise NotReady(body.replace(b"\0", b" ").decode(errors="replace").strip())
            if kind == b"R" and body != b"\0\0\0\0":
                return "asks for a password"  # it is there; whether the password is right shows in the tests
            if kind == b"S" and body.startswith(b"server_version\0"):
                version = body.split(b"\0")[1].decode()
            if kind == b"Z":
                connection.sendall(b"X\0\0\0\4")
                return f"PostgreSQL {version}"


def redis() -> str:
    """PING; a server that is still loading its data answers -LOADING."""
    url = urllib.parse.urlsplit(env.redis_url())
    with _connect(url.hostname, url.port, 6379) as connection, connection.makefile("rb") as stream:
        connection.sendall(b"PING\r\n")
        answer = stream.readline().strip()
    if answer == b"+PONG" or answer.startswith(b"-NOAUTH"):
        return "PONG"
    raise NotReady(answer.decode(errors="replace"))


def kafka() -> str:
    """A Metadata request (version 4) without topics: a broker and a controller must be named in the answer."""
    host, _, port = env.kafka_bootstrap().split(",")[0].rpartition(":")
    api_metadata, version, correlation, client = 3, 4, 7, b"probe"
    request = struct.pack(">hhih", api_metadata, version, correlation, len(client)) + client
    request += struct.pack(">i?", 0, False)
    with _connect(host, int(port), 9092) as connection, connection.makefile("rb") as stream:
        connection.sendall(struct.pack(">i", len(request)) + request)
        (length,) = struct.unpack(">i", _exactly(stream, 4))
        answer = _exactly(stream, length)
    echoed, _throttle, brokers = struct.unpack_from(">iii", answer)
    position = 12
    for _ in range(brokers):
        _node, name_length = struct.unpack_from(">ih", answer, position)
        position += 6 + name_length
        _port, rack_length = struct.unpack_from(">ih", answer, position)
        position += 6 + max(rack_length, 0)
    (cluster_length,) = struct.unpack_from(">h", answer, position)
    (controller,) = struct.unpack_from(">i", answer, position + 2 + max(cluster_length, 0))
    if echoed != correlation or brokers < 1 or controller < 0:
        raise NotReady(f"{brokers} brokers, controller {controller}")
    return f"{brokers} broker, controller {controller}"


def hapi() -> str:
    """The capability statement, which must be one of FHIR R4."""
    statement = _get_json(f"{env.hapi_url()}/metadata?_summary=true")
    if statement.get("fhirVersion") != "4.0.1":
        raise NotReady(f"FHIR version {statement.get('fhirVersion')}")
    return "FHIR 4.0.1"


def orthanc() -> str:
    """The REST interface, and a DICOM association for Verification."""
    system = _get_json(f"{env.orthanc_url()}/system")
    host = urllib.parse.urlsplit(env.orthanc_url()).hostname
    request = _associate_request(env.orthanc_aet())
    with _connect(host, env.port("ORTHANC_DICOM"), 104) as connection, connection.makefile("rb") as stream:
        connection.sendall(request)
        kind = _exactly(stream, 1)[0]
        connection.sendall(struct.pack(">BxI4x", 7, 4))  # A-ABORT: nothing more is wanted
    if kind != 2:
        raise NotReady(f"association not accepted (PDU type {kind})")
    return f"Orthanc {system.get('Version')}"


def _associate_request(called: str) -> bytes:
    """An A-ASSOCIATE-RQ that proposes Verification in implicit VR little endian (DICOM PS3.8, section 9.3.2)."""

    def item(kind: int, content: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(content)) + content

    context = bytes([1, 0, 0, 0]) + item(0x30, b"1.2.840.10008.1.1") + item(0x40, b"1.2.840.10008.1.2")
    user = item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.826.0.1.3680043.9.3811.9")
    body = struct.pack(">HH16s16s32x", 1, 0, called.encode().ljust(16), b"PROBE".ljust(16))
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + item(0x50, user)
    return struct.pack(">BxI", 1, len(body)) + body


def _installed(program: str) -> Callable[[], str]:
    def probe() -> str:
        path = env.tool(program)
        if path is None:
            raise NotReady(f"{program} is not installed")
        return path

    return probe


def chromium() -> str:
    """The browser's program is there."""
    path = env.chromium()
    if path is None or not Path(path).exists():
        raise NotReady("no Chromium is installed")
    return path


def validator() -> str:
    """The validator has been built, all its jars are there, and there is a Java to run it."""
    class_path = env.validator_class_path()
    if class_path is None:
        raise NotReady("the validator has not been built")
    missing = [entry for entry in class_path.split(":") if not Path(entry).exists()]
    if missing:
        raise NotReady(f"missing from the class path: {missing[0]}")
    return _installed("java")()


PROBES: dict[str, Callable[[], str]] = {
    "postgres": postgres,
    "redis": redis,
    "kafka": kafka,
    "hapi": hapi,
    "orthanc": orthanc,
    "dcmtk": _installed("storescu"),
    "dicom3tools": _installed("dciodvfy"),
    "chromium": chromium,
    "validator": validator,
}


def check(name: str) -> str:
    """One line about the server `name`; raises `NotReady` with what was seen instead."""
    try:
        return PROBES[name]()
    except (OSError, HTTPException, ValueError, struct.error) as problem:
        raise NotReady(f"{type(problem).__name__}: {problem}") from problem


def alive(pid: int) -> bool:
    """Whether process `pid` runs: one that has ended and only waits for its parent to notice does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def main(arguments: list[str]) -> int:
    """Probe once, or until ready, dead or late."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", choices=PROBES)
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--pid", type=int)
    given = parser.parse_args(arguments)
    end = time.monotonic() + given.wait
    while True:
        try:
            print(check(given.name))
        except NotReady as problem:
            if given.pid is not None and not alive(given.pid):
                print("the process ended")
                return 1
            if time.monotonic() >= end:
                print(problem)
                return 1
            time.sleep(0.2)
        else:
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
