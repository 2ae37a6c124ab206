"""Multipart bodies, and the STOW-RS door of a listener under test."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from pydicom.dataset import Dataset
from starlette.applications import Starlette

from dicom_listener.adapters.stow import StowDoor, StowOptions
from dicom_listener.adapters.stow_server import StowServer
from dicom_listener.domain.part10 import part10_head
from dicom_listener.ports import Refusal
from integration.dicom_listener.peers import EXPLICIT, Listener, encoded
from pipeline.clock import SystemClock
from pipeline.http import bind

BOUNDARY = "a-boundary-of-the-test"
CONTENT_TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
JSON = {"accept": "application/dicom+json"}


def part10(ds: Dataset, transfer_syntax_uid: str = EXPLICIT, data: bytes | None = None) -> bytes:
    """The data set (or its bytes) as a Part 10 file, under somebody else's file meta information."""
    head = part10_head(ds.SOPClassUID, ds.SOPInstanceUID, transfer_syntax_uid)
    return head.replace(b"ECHO-CXR-1", b"SOMEBODY-9") + (data or encoded(ds))


def body_of(*files: bytes) -> bytes:
    """A multipart/related body with a part for each file."""
    head = b"\r\n--" + BOUNDARY.encode() + b"\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + file for file in files) + b"\r\n--" + BOUNDARY.encode() + b"--\r\n"


def pieces(body: bytes, size: int) -> Iterator[bytes]:
    """The body cut into pieces, sent in chunks."""
    for start in itertools.count(0, size):
        if start >= len(body):
            return
        yield body[start : start + size]


def listed(answer: httpx.Response, tag: str = "00081199") -> list[str]:
    """SOP Instance UIDs in one of the sequences of a Store Instances Response."""
    return [item["00081155"]["Value"][0] for item in answer.json().get(tag, {}).get("Value", [])]


def reasons(answer: httpx.Response, tag: str = "00081198") -> list[int]:
    """Failure Reasons in one of the sequences."""
    return [item["00081197"]["Value"][0] for item in answer.json().get(tag, {}).get("Value", [])]


@contextmanager
def stow_door(listener: Listener, tls: ssl.SSLContext | None = None, **options: Any) -> Iterator[str]:
    """The STOW-RS door beside the DICOM port of a listener; its base address."""
    settings: dict[str, Any] = {
        "ae_title": "STOW-RS",
        "called_ae_title": "ECHO",
        "token": None,
        "maximum_requests": 16,
        "maximum_requests_per_peer": 16,
        "maximum_request_bytes": 2**30,
        "maximum_object_bytes": 2**30,
        "silence_seconds": 60.0,
    }
    head_seconds = options.pop("head_seconds", 30.0)
    maximum_connections = options.pop("maximum_connections", 64)
    door = StowDoor(
        StowOptions(**(settings | options)),
        listener.receiver,
        listener.receiver._associations,
        listener.book,
        listener.store,
        SystemClock(),
    )
    server = StowServer(
        Starlette(routes=door.routes()),
        bind("127.0.0.1", 0),
        tls,
        lambda reason, address, detail: listener.book.note(Refusal.of_stranger(reason, address, detail)),
        drain_seconds=1,
        head_seconds=head_seconds,
        maximum_connections=maximum_connections,
    )
    server.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.port}/dicom-web/studies"
    finally:
        server.close()
        server.join()
