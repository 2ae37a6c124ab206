"""Storage commitment with pynetdicom's SCU and with Orthanc: on the same and on a new association, and truthful."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from dicom_listener.adapters.commitments import PeerAddress, SqlCommitments
from dicom_listener.adapters.tables import commitments
from dicom_listener.app import MIGRATIONS
from dicom_listener.domain.commitment import Reference
from dicom_listener.ports import Peer
from integration.dicom_listener.peers import CT, DX, EXPLICIT, Listener, Sender, image, listening, new_uid, wait_for
from pipeline.database import Database

INSTANCE = str(StorageCommitmentPushModelInstance)


class Requester:
    """A Storage Commitment SCU that also listens for results on a port of its own."""

    def __init__(self) -> None:
        self.ae = AE(ae_title="SENDER")
        self.ae.acse_timeout = self.ae.dimse_timeout = self.ae.network_timeout = 60
        self.ae.add_requested_context(DX, EXPLICIT)
        self.ae.add_requested_context(StorageCommitmentPushModel)
        self.ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        self.results: list[tuple[int, Dataset]] = []
        self.answer = 0x0000
        self.server = self.ae.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._on_report)]
        )
        assert self.server is not None
        self.address = PeerAddress("127.0.0.1", self.server.server_address[1])

    def _on_report(self, event: Any) -> tuple[int, None]:
        self.results.append((event.event_type, event.event_information))
        return self.answer, None

    def associate(self, port: int) -> Any:
        assoc = self.ae.associate(
            "127.0.0.1", port, ae_title="ECHO", evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._on_report)]
        )
        assert assoc.is_established
        return assoc

    @staticmethod
    def ask(assoc: Any, references: list[tuple[str, str]], transaction: str | None = None, **changes: Any) -> int:
        ds = Dataset()
        ds.TransactionUID = transaction or new_uid()
        items = []
        for sop_class, sop_instance in references:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
            items.append(item)
        ds.ReferencedSOPSequence = items
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
        status, _ = assoc.send_n_action(ds, 1, StorageCommitmentPushModel, INSTANCE)
        return int(status.Status)

    def result(self) -> tuple[int, list[str], dict[str, int]]:
        """(event type, committed, failed with reason) of the newest result."""
        kind, ds = self.results[-1]
        committed = [str(item.ReferencedSOPInstanceUID) for item in ds.get("ReferencedSOPSequence") or []]
        failed = {str(i.ReferencedSOPInstanceUID): int(i.FailureReason) for i in ds.get("FailedSOPSequence") or []}
        return kind, committed, failed


@pytest.fixture
def requester() -> Iterator[Requester]:
    running = Requester()
    yield running
    running.server.shutdown()


def store(listener: Listener, count: int = 1) -> list[str]:
    images = [image() for _ in range(count)]
    with Sender(listener.port) as sender:
        assert [sender.send(ds) for ds in images] == [0] * count
    return [str(ds.SOPInstanceUID) for ds in images]


def step_until_told(listener: Listener, requester: Requester, count: int = 1) -> None:
    def told() -> bool:
        listener.committing.step()
        return len(requester.results) >= count

    wait_for(told)


@pytest.mark.parametrize("on_new", [False, True], ids=["same association", "new association"])
def test_what_is_stored_is_committed_and_what_is_not_is_not(tmp_path: Path, requester: Requester, on_new: bool) -> None:
    peers = {"SENDER": requester.address} if on_new else {}
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "o", known_peers=peers) as listener:
        first, second = store(listener, 2)
        unknown = new_uid()
        assoc = requester.associate(listener.port)
        assert requester.ask(assoc, [(DX, first), (DX, first)]) == 0
        if on_new:
            assoc.release()
        step_until_told(listener, requester)
        assert requester.result() == (1, [first], {})
        if on_new:
            assoc = requester.associate(listener.port)
        assert requester.ask(assoc, [(DX, first), (CT, second), (DX, unknown)]) == 0
        step_until_told(listener, requester, 2)
        assert requester.result() == (2, [first], {second: 0x0119, unknown: 0x0112})
        assert [row.outcome for row in listener.rows(commitments)] == ["committed", "failures"]
        assoc.release()


def test_a_deleted_object_is_not_promised(tmp_path: Path, requester: Requester) -> None:
    with listening(
        f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "o", known_peers={"SENDER": requester.address}
    ) as listener:
        kept, gone = store(listener, 2)
        assoc = requester.associate(listener.port)
        assert requester.ask(assoc, [(DX, kept), (DX, gone)]) == 0
        assoc.release()
        listener.store.delete(listener.instance(gone).object_key)
        step_until_told(listener, requester)
        assert requester.result() == (2, [kept], {gone: 0x0112})


def test_the_result_survives_a_restart_and_a_sender_that_is_away(tmp_path: Path, requester: Requester) -> None:
    url, folder = f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "o"
    with listening(url, folder) as listener:
        (uid,) = store(listener)
        assoc = requester.associate(listener.port)
        assert requester.ask(assoc, [(DX, uid)]) == 0
        assoc.release()
        listener.committing.step()
        assert requester.results == []
    with listening(url, folder, known_peers={"SENDER": requester.address}) as listener:
        requester.answer = 0x0110
        step_until_told(listener, requester)
        requester.answer = 0x0000
        step_until_told(listener, requester, 2)
        assert requester.result() == (1, [uid], {})
        wait_for(lambda: [row.outcome for row in listener.rows(commitments)] == ["committed"])


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres"))])
def test_a_clock_set_back_puts_no_result_off(tmp_path: Path, request: pytest.FixtureRequest, kind: str) -> None:
    url = f"sqlite:///{tmp_path}/l.sqlite3" if kind == "sqlite" else str(request.getfixturevalue("postgres_url"))
    database = Database(url)
    database.migrate(MIGRATIONS)
    waiting, now = SqlCommitments(database), datetime.now(UTC)
    peer, asked = Peer("SENDER", "ECHO", "127.0.0.1"), [Reference(DX, new_uid())]
    waiting.add(new_uid(), peer, asked, now + timedelta(days=1))
    (commitment,) = waiting.due(now, 20)
    waiting.postpone(commitment.id, now + timedelta(seconds=600))
    assert waiting.due(now, 20) == []
    assert len(waiting.due(now + timedelta(seconds=600), 20)) == 1
    database.close()


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres"))])
def test_of_each_sender_the_longest_due_is_told_first(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    url = f"sqlite:///{tmp_path}/l.sqlite3" if kind == "sqlite" else str(request.getfixturevalue("postgres_url"))
    database = Database(url)
    database.migrate(MIGRATIONS)
    waiting, now = SqlCommitments(database), datetime.now(UTC)
    asked = [Reference(DX, new_uid())]
    ids = [
        waiting.add(new_uid(), Peer(title, "ECHO", "127.0.0.1"), asked, now + timedelta(seconds=n))
        for n, title in enumerate(["A", "A", "B", "A"])
    ]
    later = now + timedelta(seconds=9)
    assert [each.id for each in waiting.due(later, 20)] == [ids[0], ids[2]]
    waiting.postpone(ids[0], later + timedelta(seconds=60))
    assert [each.id for each in waiting.due(later, 20)] == [ids[1], ids[2]]
    waiting.finish(ids[2], "committed", later)
    assert [each.id for each in waiting.due(later, 20)] == [ids[1]]
    database.close()


def test_a_sender_that_is_silent_does_not_hold_up_others(tmp_path: Path, requester: Requester) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        listening(
            f"sqlite:///{tmp_path}/l.sqlite3",
            tmp_path / "o",
            known_peers={
                "SENDER": requester.address,
                "SILENT": PeerAddress("127.0.0.1", silent.getsockname()[1]),
            },
        ) as listener,
    ):
        (uid,) = store(listener)
        long_ago = datetime.now(UTC) - timedelta(minutes=1)
        waiting = SqlCommitments(listener.database)
        for title in ("SILENT", "SENDER"):
            waiting.add(new_uid(), Peer(title, "ECHO", "127.0.0.1"), [Reference(DX, uid)], long_ago)
        telling = threading.Thread(target=listener.committing.step)
        telling.start()
        silent.settimeout(90)
        connection, _ = silent.accept()
        wait_for(lambda: requester.results)
        assert telling.is_alive()
        connection.close()
        telling.join(60)
        assert not telling.is_alive()


def test_wrong_requests_have_a_status_and_a_reason(tmp_path: Path, requester: Requester) -> None:
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "o") as listener:
        assoc = requester.associate(listener.port)
        uid = new_uid()
        assert requester.ask(assoc, []) == 0x0114
        assert requester.ask(assoc, [(DX, "../etc")]) == 0x0115
        assert requester.ask(assoc, [(DX, uid)], TransactionUID="") == 0x0114
        ds = Dataset()
        ds.TransactionUID = new_uid()
        assert assoc.send_n_action(ds, 2, StorageCommitmentPushModel, INSTANCE)[0].Status == 0x0123
        assert assoc.send_n_action(ds, 1, StorageCommitmentPushModel, UID("1.2.3"))[0].Status == 0x0112
        assert {row.reason for row in listener.refusals()} == {"commitment_invalid"}
        assert listener.rows(commitments) == []
        assoc.release()


class Orthanc(Protocol):
    """What the fixture gives."""

    url: str
    host: str
    dicom_port: int
    aet: str


def test_orthanc_stores_and_asks_for_commitment(tmp_path: Path, orthanc: Orthanc, unique: str) -> None:
    with (
        listening(
            f"sqlite:///{tmp_path}/l.sqlite3",
            tmp_path / "o",
            known_peers={orthanc.aet: PeerAddress(orthanc.host, orthanc.dicom_port)},
        ) as listener,
        # Orthanc may close an idle connection in the very moment in which it is used again.
        httpx.Client(base_url=orthanc.url, timeout=60, limits=httpx.Limits(max_keepalive_connections=0)) as http,
        contextlib.ExitStack() as afterwards,
    ):
        name = f"commit-{unique}"
        http.put(f"/modalities/{name}", json=[f"E{unique[:14]}", "127.0.0.1", listener.port]).raise_for_status()
        afterwards.callback(http.delete, f"/modalities/{name}")
        ds = image(size=300)
        ds.ensure_file_meta()
        ds.file_meta.TransferSyntaxUID = UID(EXPLICIT)
        path = tmp_path / "film.dcm"
        ds.save_as(path, enforce_file_format=True)
        resource = http.post("/instances", content=path.read_bytes()).raise_for_status().json()["ID"]
        afterwards.callback(http.delete, f"/instances/{resource}")
        http.post(f"/modalities/{name}/store", json=resource).raise_for_status()
        unknown = new_uid()
        asked = http.post(
            f"/modalities/{name}/storage-commitment",
            json={"DicomInstances": [[DX, str(ds.SOPInstanceUID)], [DX, unknown]]},
        )
        link = asked.raise_for_status().json()["Path"]
        deadline = time.monotonic() + 120
        while (report := http.get(link).json())["Status"] == "Pending":
            listener.committing.step()
            assert time.monotonic() < deadline, report
            time.sleep(0.1)
        assert report["Status"] == "Failure"
        assert [each["SOPInstanceUID"] for each in report["Success"]] == [ds.SOPInstanceUID]
        assert [each["SOPInstanceUID"] for each in report["Failures"]] == [unknown]
