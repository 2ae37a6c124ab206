"""The DIMSE provider that streams into staged files, without an association's threads around it."""

from __future__ import annotations

import queue
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from pynetdicom.presentation import build_context

from dicom_listener.adapters.dimse import StagingDimse
from dicom_listener.adapters.staging import IncomingFile
from integration.dicom_listener import wire
from pipeline.store import LocalObjectStore

UID = "2.25.1"


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path)


@pytest.fixture
def dimse(store: LocalObjectStore) -> StagingDimse:
    accepted = build_context(wire.DX, wire.EXPLICIT)
    association = SimpleNamespace(
        _accepted_cx={1: accepted},
        dul=SimpleNamespace(socket=None, event_queue=queue.Queue()),
        get_handlers=lambda _: [],
    )

    def begin(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> IncomingFile:
        return IncomingFile(
            store, sop_class_uid, sop_instance_uid, transfer_syntax_uid, refused=None, maximum_bytes=2**20
        )

    with socket.socket() as connection:
        return StagingDimse(association, connection, begin, lambda incoming: 0, lambda reason: None)


def values(*parts: tuple[int, bytes]) -> list[tuple[int, memoryview]]:
    """Of one P-DATA-TF in the context of the fixture."""
    return [(1, memoryview(bytes([control]) + data)) for control, data in parts]


COMMAND = values((wire.COMMAND | wire.LAST, wire.store_command(UID)))


def staged(store: LocalObjectStore) -> list[Path]:
    return list(store.staging_dir().iterdir())


def test_a_file_stands_ready_before_the_first_fragment(dimse: StagingDimse, store: LocalObjectStore) -> None:
    dimse.receive_values(COMMAND)
    assert len(staged(store)) == 1
    dimse.discard_all()
    assert staged(store) == []


def test_what_was_read_ahead_of_the_end_leaves_no_file(dimse: StagingDimse, store: LocalObjectStore) -> None:
    dimse.discard_all()  # by the association's thread, while the one that reads still has PDUs
    dimse.receive_values(COMMAND)
    assert staged(store) == []
    dimse.receive_values(values((wire.DATA | wire.LAST, b"not for any file")))
    assert staged(store) == []
