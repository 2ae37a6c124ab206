"""Real associations against the listener's parts: what is kept, what is refused, what is announced."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydicom.filereader import read_file_meta_info
from pynetdicom import ALL_TRANSFER_SYNTAXES

from dicom_listener.adapters.ledger import SqlLedger
from dicom_listener.adapters.tables import instances, studies
from dicom_listener.domain.completeness import Rules
from dicom_listener.domain.watermark import Watermark
from dicom_listener.ports import Recorded, StoredObject
from integration.dicom_listener.peers import (
    CT,
    DX,
    EXPLICIT,
    IMPLICIT,
    VERIFICATION,
    Listener,
    Sender,
    encoded,
    half_a_message,
    image,
    listening,
    new_uid,
    wait_for,
)
from integration.dicom_listener.process import small_disk
from pipeline.events import STUDY_COMPLETED, STUDY_OPENED
from pipeline.store import LocalObjectStore


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "objects") as running:
        yield running


def test_echo(listener: Listener) -> None:
    with Sender(listener.port) as sender:
        assert sender.assoc.send_c_echo().Status == 0


@pytest.mark.parametrize("syntaxes", [ALL_TRANSFER_SYNTAXES[:23], [*ALL_TRANSFER_SYNTAXES[23:], "1.2.840.113619.5.99"]])
def test_every_transfer_syntax_is_kept_as_it_came(listener: Listener, syntaxes: list[str]) -> None:
    with Sender(listener.port, [(DX, [syntax]) for syntax in syntaxes]) as sender:
        assert len(sender.assoc.accepted_contexts) == len(syntaxes)
        for syntax in syntaxes:
            ds = image()
            data = encoded(ds, syntax)
            assert sender.store(data, DX, ds.SOPInstanceUID, syntax) == 0
            row = listener.instance(ds.SOPInstanceUID)
            assert row.transfer_syntax_uid == syntax
            assert listener.data_set(row.object_key) == data
            assert row.fields["rows"] == 64
            assert row.fields["has_pixel_data"]
            meta = read_file_meta_info(listener.root / row.object_key)
            assert (meta.TransferSyntaxUID, meta.MediaStorageSOPInstanceUID) == (syntax, ds.SOPInstanceUID)
    assert listener.staged() == []


@pytest.mark.parametrize("sop_class", [CT, "1.2.840.10008.5.1.4.1.1.104.1", "1.2.276.0.7230010.3.1.0.1"])
def test_other_and_private_storage_classes_are_kept(listener: Listener, sop_class: str) -> None:
    ds = image(sop_class=sop_class)
    with Sender(listener.port, [(sop_class, [EXPLICIT])]) as sender:
        assert sender.send(ds) == 0
    assert listener.instance(ds.SOPInstanceUID).sop_class_uid == sop_class


def test_services_that_are_no_storage_are_not_accepted(listener: Listener) -> None:
    with Sender(listener.port, [(VERIFICATION, [IMPLICIT]), ("1.2.840.10008.5.1.4.1.2.2.1", [IMPLICIT])]) as sender:
        assert [cx.abstract_syntax for cx in sender.assoc.accepted_contexts] == [VERIFICATION]


def test_parallel_associations_make_one_study(listener: Listener) -> None:
    study = new_uid()
    statuses: list[int | None] = []

    def send(number: int) -> None:
        with Sender(listener.port, calling=f"S{number}") as sender:
            statuses.extend(sender.send(image(study)) for _ in range(5))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0] * 30
    listener.step_until(1)
    opened, completed = listener.events()
    assert (opened.type, completed.type) == (STUDY_OPENED, STUDY_COMPLETED)
    assert len(completed.data["instances"]) == 30
    assert sorted(completed.data["calling_ae_titles"]) == [f"S{n}" for n in range(6)]
    assert listener.study(study).instance_count == 30


def test_the_same_instance_on_many_associations_is_one_row(listener: Listener) -> None:
    ds = image(size=256)
    statuses: list[int | None] = []
    data = encoded(ds)

    def send() -> None:
        with Sender(listener.port) as sender:
            statuses.append(sender.store(data, DX, ds.SOPInstanceUID))

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0] * 6
    (row,) = listener.rows(instances)
    assert row.duplicates == 5
    assert listener.data_set(row.object_key) == data


def test_events_of_a_study_and_of_a_late_image(listener: Listener) -> None:
    first = image()
    study = first.StudyInstanceUID
    with Sender(listener.port) as sender:
        assert sender.send(first) == 0
    listener.step_until(1)
    late = image(study, PatientID="PHANTOM-2")
    with Sender(listener.port) as sender:
        assert sender.send(late) == 0
    listener.step_until(1)
    events = listener.events()
    assert [(e.type, e.data["study_version"], e.data["reason"]) for e in events] == [
        (STUDY_OPENED, 1, "new"),
        (STUDY_COMPLETED, 1, "association_released"),
        (STUDY_OPENED, 2, "late_instance"),
        (STUDY_COMPLETED, 2, "association_released"),
    ]
    assert {e.correlationid for e in events[2:]} == {f"{study}#2"}
    assert [i["sop_instance_uid"] for i in events[1].data["instances"]] == [first.SOPInstanceUID]
    assert [i["sop_instance_uid"] for i in events[3].data["instances"]] == [first.SOPInstanceUID, late.SOPInstanceUID]
    assert events[1].data["patient"]["patient_id"] == "PHANTOM-1"
    assert events[3].data["patient"]["patient_id"] == "PHANTOM-2"  # the newest identifiers speak for a new version
    for each in events[3].data["instances"]:
        assert listener.store.exists(each["object_ref"])


def test_a_study_too_large_to_announce_holds_up_no_other(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    first = image()
    with Sender(listener.port) as sender:
        assert sender.send(first) == 0
    listener.step_until(1)
    announced = len(listener.events()[-1].to_bytes())
    monkeypatch.setattr("pipeline.outbox.MAX_EVENT_BYTES", announced + 200)
    large, small = image(), image()
    with Sender(listener.port) as sender:
        assert sender.send(large) == 0
        assert [sender.send(image(large.StudyInstanceUID)) for _ in range(3)] == [0, 0, 0]
        assert sender.send(small) == 0
    listener.step_until(1)
    completed = [event.subject for event in listener.events() if event.type == STUDY_COMPLETED]
    assert completed == [first.StudyInstanceUID, small.StudyInstanceUID]
    assert listener.loop.step() == 0  # it is not tried again and again
    assert len(listener.rows(instances)) == 6  # nothing of it is lost


def test_an_open_association_waits_for_the_quiet_period(tmp_path: Path) -> None:
    rules = Rules(quiet_seconds=1.5, release_seconds=0.0, maximum_age_seconds=60)
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "objects", rules=rules) as listener:
        with Sender(listener.port) as sender:
            began = time.monotonic()  # before the image, so that a pause in between cannot shorten what is measured
            assert sender.send(image()) == 0
            listener.step_until(1)
            assert time.monotonic() - began >= rules.quiet_seconds
        assert listener.events()[1].data["reason"] == "quiet_period"


def test_duplicates_keep_first(listener: Listener) -> None:
    ds = image()
    changed = image(ds.StudyInstanceUID, SOPInstanceUID=ds.SOPInstanceUID, AccessionNumber="EX-0002")
    with Sender(listener.port) as sender:
        assert [sender.send(ds), sender.send(ds)] == [0, 0]
    listener.step_until(1)
    with Sender(listener.port) as sender:
        assert [sender.send(ds), sender.send(changed), sender.send(changed)] == [0, 0, 0]
    time.sleep(0.2)
    assert listener.loop.step() == 0
    assert listener.study(ds.StudyInstanceUID).version == 1
    first, beside = listener.rows(instances)
    assert (first.valid, first.duplicates, beside.valid, beside.duplicates) == (True, 2, False, 1)
    assert listener.store.exists(beside.object_key)
    assert len(listener.events()[1].data["instances"]) == 1


def test_duplicates_replace(tmp_path: Path) -> None:
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "objects", policy="replace") as listener:
        ds = image()
        changed = image(ds.StudyInstanceUID, SOPInstanceUID=ds.SOPInstanceUID, AccessionNumber="EX-0002")
        for each in (ds, changed, ds):
            with Sender(listener.port) as sender:
                assert [sender.send(each), sender.send(each)] == [0, 0]
            listener.step_until(1)
        completed = [event for event in listener.events() if event.type == STUDY_COMPLETED]
        assert [event.data["study_version"] for event in completed] == [1, 2, 3]
        assert [event.data["order"]["accession_number"] for event in completed] == ["EX-0001", "EX-0002", "EX-0001"]
        assert [len(event.data["instances"]) for event in completed] == [1, 1, 1]
        hashes = [event.data["instances"][0]["sha256"] for event in completed]
        assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize(
    ("case", "status", "reason"),
    [
        ("not dicom", 0xC000, "truncated"),
        ("truncated", 0xC000, "truncated"),
        ("no study", 0xC000, "missing_uid"),
        ("traversal in study", 0xC000, "invalid_uid"),
        ("traversal in command", 0x0117, "invalid_sop_instance_uid"),
        ("overlong in command", 0x0117, "invalid_sop_instance_uid"),
        ("class in command", 0x0118, "invalid_sop_class_uid"),
        ("other instance", 0xA900, "uid_mismatch"),
        ("other class", 0xA900, "uid_mismatch"),
    ],
)
def test_refusals(listener: Listener, case: str, status: int, reason: str) -> None:
    ds = image()
    sop_class, uid, data = DX, str(ds.SOPInstanceUID), encoded(ds)
    if case == "not dicom":
        data = b"\x89PNG\r\n\x1a\n" + b"this is no data set " * 40
    elif case == "truncated":
        data = data[:-100]
    elif case == "no study":
        data = encoded(image(SOPInstanceUID=uid, StudyInstanceUID=None))
    elif case == "traversal in study":
        study = str(ds.StudyInstanceUID).encode()
        data = data.replace(study, b"../../../../etc/passwd".ljust(len(study), b"x"))
    elif case == "traversal in command":
        uid = "../../../../tmp/owned"
    elif case == "overlong in command":
        uid = "1." + "2" * 64
    elif case == "class in command":
        sop_class = "../x"
    elif case == "other instance":
        uid = new_uid()
    elif case == "other class":
        sop_class = CT
    with Sender(listener.port) as sender:
        assert sender.store(data, sop_class, uid) == status
        good = image()
        assert sender.send(good) == 0  # the next object is unharmed, on the same association
    (refusal,) = listener.refusals()
    assert (refusal.reason, refusal.status, refusal.calling_ae_title) == (reason, status, "SENDER")
    assert [row.sop_instance_uid for row in listener.rows(instances)] == [good.SOPInstanceUID]
    assert len(listener.rows(studies)) == 1
    assert listener.staged() == []
    assert {path.name for path in listener.root.iterdir()} <= {"objects", "quarantine", ".staging"}
    if status == 0xC000:
        assert listener.data_set(refusal.quarantine_key) == data
        note = json.loads((listener.root / refusal.quarantine_key).with_suffix(".json").read_text())
        assert (note["reason"], note["status"]) == (reason, "C000")
    else:
        assert refusal.quarantine_key is None
    if status == 0xA900:
        assert refusal.accession_number == "EX-0001"


def test_low_space_with_hysteresis(tmp_path: Path) -> None:
    free = [1000]
    with listening(
        f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "o", watermark=Watermark(500, 800), free=lambda: free[0]
    ) as listener:
        ds = image()
        with Sender(listener.port) as sender:
            answers = []
            for free[0] in (600, 499, 700, 800, 600):
                answers.append(sender.send(ds))
            assert answers == [0, 0xA700, 0xA700, 0, 0]
        assert [(row.reason, row.count) for row in listener.refusals()] == [("low_space", 2)]
        assert listener.staged() == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "tiny", 1) as folder:
        yield folder


def check_full_disk(listener: Listener, make_room: Path) -> None:
    big, small = image(size=1100), image(size=100)
    with Sender(listener.port) as sender:
        assert sender.send(small) == 0
        assert sender.send(big) == 0xA700
        assert listener.staged() == []
        make_room.write_bytes(bytes(900_000))
        waiting = image(size=400)
        assert sender.send(waiting) == 0xA700
        make_room.unlink()
        assert sender.send(waiting) == 0
    assert [(r.reason, r.text, r.count) for r in listener.refusals()] == [
        ("store_unavailable", "the object store cannot be written (no space left)", 2)
    ]
    assert listener.data_set(listener.instance(small.SOPInstanceUID).object_key) == encoded(small)
    assert {row.sop_instance_uid for row in listener.rows(instances)} == {small.SOPInstanceUID, waiting.SOPInstanceUID}


def test_full_disk_refuses_and_recovers(tmp_path: Path, tiny_disk: Path) -> None:
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tiny_disk) as listener:
        check_full_disk(listener, tiny_disk / "ballast")


def test_store_that_cannot_be_written(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: LocalObjectStore, path: Path, key: str) -> None:
        raise OSError(5, "Input/output error")

    ds = image()
    with Sender(listener.port) as sender:
        with monkeypatch.context() as broken:
            broken.setattr(LocalObjectStore, "put_file", fail)
            assert sender.send(ds) == 0xA700
        assert listener.rows(instances) == []
        assert sender.send(ds) == 0


def test_database_away(listener: Listener, tmp_path: Path) -> None:
    first, second = image(), image()
    with Sender(listener.port) as sender:
        assert sender.send(first) == 0
        listener.database.close()
        hidden = [(path, path.with_suffix(path.suffix + ".away")) for path in tmp_path.glob("l.sqlite3*")]
        for path, away in hidden:
            path.rename(away)
        (tmp_path / "l.sqlite3").mkdir()
        assert sender.send(second) == 0xA700
        (tmp_path / "l.sqlite3").rmdir()
        for path, away in hidden:
            away.rename(path)
        assert sender.send(second) == 0
    assert len(listener.rows(instances)) == 2
    listener.step_until(2)


def test_abort_in_the_middle_leaves_nothing(listener: Listener) -> None:
    ds = image(size=512)
    sender = Sender(listener.port)
    half_a_message(sender, encoded(ds), ds.SOPInstanceUID)
    wait_for(lambda: listener.staged())
    sender.assoc.abort()
    wait_for(lambda: not listener.staged())
    assert listener.rows(instances) == []
    with Sender(listener.port) as again:
        assert again.send(ds) == 0


def test_silent_peer_is_let_go(tmp_path: Path) -> None:
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "o", network_timeout_seconds=0.5) as listener:
        sender = Sender(listener.port)
        half_a_message(sender, encoded(image(size=512)), new_uid())
        wait_for(lambda: sender.assoc.is_aborted)
        wait_for(lambda: not listener.staged())
        wait_for(lambda: not listener.scp._server.active_associations)


def test_a_sender_that_waits_for_its_answer_is_not_silent(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = [0.0]
    record = SqlLedger.record

    def slowly(self: SqlLedger, stored: StoredObject, now: datetime) -> Recorded:
        ahead[0] = 100  # as if it had taken longer than the network timeout
        time.sleep(1)  # in which the association's thread looks at its timer
        return record(self, stored, now)

    monkeypatch.setattr("pynetdicom.timer.time", SimpleNamespace(time=lambda: time.time() + ahead[0]))
    monkeypatch.setattr(SqlLedger, "record", slowly)
    with Sender(listener.port) as sender:
        assert sender.send(image()) == 0
        assert sender.assoc.send_c_echo().Status == 0
    assert listener.refusals() == []


def test_too_many_associations_are_rejected_as_transient(tmp_path: Path) -> None:
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "o", maximum_associations=1) as listener:
        with Sender(listener.port) as first:
            second = Sender(listener.port)
            assert second.rejected_for_now()
            assert first.send(image()) == 0
        wait_for(lambda: not listener.scp._server.active_associations)
        with Sender(listener.port) as third:
            assert third.send(image()) == 0


def test_called_ae_title(tmp_path: Path) -> None:
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "o", require_called_aet=True) as listener:
        assert Sender(listener.port, called="OTHER").assoc.is_rejected
        with Sender(listener.port, called="ECHO") as sender:
            assert sender.send(image()) == 0


def test_draining_rejects_new_and_finishes_running_associations(listener: Listener) -> None:
    with Sender(listener.port) as running:
        assert running.send(image()) == 0
        draining = threading.Thread(target=listener.scp.drain, args=(120,))
        draining.start()
        wait_for(listener.scp._draining.is_set)
        refused = Sender(listener.port)
        assert refused.rejected_for_now()
        assert running.send(image()) == 0
        assert draining.is_alive()
    draining.join(timeout=60)
    assert not draining.is_alive()
    assert len(listener.rows(instances)) == 2
