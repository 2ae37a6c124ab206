"""Orthanc as the PACS: an auto-route rule sends on what it takes in, in the transfer syntax in which it came."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import httpx
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from dicom_listener.adapters.tables import instances
from dicom_listener.domain.part10 import part10_head
from integration.dicom_listener.peers import DX, EXPLICIT, IMPLICIT, Listener, encoded, image, listening, wait_for


class Orthanc(Protocol):
    """What the fixture gives."""

    url: str


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "objects") as running:
        yield running


def test_auto_route(listener: Listener, orthanc: Orthanc, unique: str) -> None:
    syntaxes = [
        *(EXPLICIT, IMPLICIT, RLELossless, JPEGBaseline8Bit),
        *(JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless),
    ]
    sent: dict[str, tuple[str, bytes]] = {}
    # Orthanc may close an idle connection in the very moment in which it is used again.
    with httpx.Client(base_url=orthanc.url, timeout=60, limits=httpx.Limits(max_keepalive_connections=0)) as http:
        route = f"/modalities/auto-{unique}"
        http.put(route, json=[f"E{unique[:14]}", "127.0.0.1", listener.port]).raise_for_status()
        resources = []
        try:
            for syntax in syntaxes:
                ds = image(size=150)
                data = encoded(ds, syntax)
                sent[ds.SOPInstanceUID] = syntax, data
                file = part10_head(DX, ds.SOPInstanceUID, syntax) + data
                resources.append(http.post("/instances", content=file).raise_for_status().json()["ID"])
            wait_for(lambda: set(sent) <= {row.sop_instance_uid for row in listener.rows(instances)})
        finally:
            http.delete(route)
            for resource in resources:
                http.delete(f"/instances/{resource}")
    kept = {
        row.sop_instance_uid: (row.transfer_syntax_uid, listener.data_set(row.object_key))
        for row in listener.rows(instances)
        if row.sop_instance_uid in sent  # the route brings what other test runs put into the archive, too
    }
    assert kept == sent
