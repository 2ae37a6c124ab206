"""Retention and orphans: what is deleted, and what must never be."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicom_listener.adapters.key_locks import KeyLocks
from dicom_listener.adapters.object_index import SqlObjectIndex
from dicom_listener.adapters.tables import instances, refusals
from dicom_listener.handlers import sweep
from dicom_listener.handlers.sweep import Sweeper, UnderWay
from integration.dicom_listener.peers import Listener, Sender, image, listening
from pipeline.clock import ManualClock
from pipeline.events import STUDY_COMPLETED


def sweeper(listener: Listener, clock: ManualClock, under_way: UnderWay, grace_s: float = 60) -> Sweeper:
    return Sweeper(
        listener.store,
        SqlObjectIndex(listener.database, clock),
        under_way,
        clock,
        orphan_grace=timedelta(seconds=grace_s),
        keep_objects=timedelta(days=7),
        keep_refusals=timedelta(days=90),
        interval=timedelta(hours=1),
    )


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres"))])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/l.sqlite3"
    return str(request.getfixturevalue("postgres_url"))


def test_orphans_go_after_the_grace_time_unless_they_are_being_kept(url: str, tmp_path: Path) -> None:
    clock, under_way, stop = ManualClock(datetime.now(UTC)), KeyLocks(), threading.Event()
    with listening(url, tmp_path / "o") as listener:
        with Sender(listener.port) as sender:
            assert sender.send(image()) == 0
        orphan, kept = f"objects/aa/bb/{'a' * 64}.dcm", f"objects/cc/dd/{'c' * 64}.dcm"
        for key in (orphan, kept):
            listener.store.put_bytes(b"half a film", key)
        sweeping = sweeper(listener, clock, under_way)
        assert sweeping.collect_orphans(stop) == 0
        clock.advance(61)
        with under_way.keeping(kept):
            assert sweeping.collect_orphans(stop) == 1
        assert not listener.store.exists(orphan)
        assert listener.store.exists(kept)
        (row,) = listener.rows(instances)
        assert listener.store.exists(row.object_key)


def test_quarantine_that_a_crash_left_without_its_refusal_goes(url: str, tmp_path: Path) -> None:
    clock, stop = ManualClock(datetime.now(UTC)), threading.Event()
    with listening(url, tmp_path / "o") as listener:
        ds = image()
        with Sender(listener.port) as sender:
            assert sender.store(b"no data set at all", ds.SOPClassUID, ds.SOPInstanceUID) == 0xC000
        (refusal,) = listener.refusals()
        for suffix in ("dcm", "json"):
            listener.store.put_bytes(b"left", f"quarantine/{'a' * 64}.{suffix}")
        sweeping = sweeper(listener, clock, KeyLocks())
        assert sweeping.collect_orphans(stop) == 0
        clock.advance(61)
        assert sweeping.collect_orphans(stop) == 1
        key = refusal.quarantine_key
        assert set(listener.store.keys("quarantine")) == {key, key.removesuffix(".dcm") + ".json"}


def test_retention_deletes_objects_and_remembers_them(url: str, tmp_path: Path) -> None:
    clock, stop = ManualClock(datetime.now(UTC)), threading.Event()
    with listening(url, tmp_path / "o") as listener:
        sweeping = sweeper(listener, clock, KeyLocks())
        old = [image() for _ in range(25)]
        with Sender(listener.port) as sender:
            assert {sender.send(ds) for ds in old} == {0}
        listener.step_until(25)
        with Sender(listener.port) as sender:
            assert sender.send(image()) == 0  # still open
            clock.advance(86_400 * 8)
            assert sweeping.expire(stop) == 25
            assert sweeping.expire(stop) == 0
            assert len(list(listener.store.keys("objects"))) == 1
            assert len(listener.rows(instances)) == 26
            # The PACS sends one again, then a late image: the new version lists what stands.
            assert sender.send(old[0]) == 0
            assert listener.store.exists(listener.instance(old[0].SOPInstanceUID).object_key)
            late = image(old[1].StudyInstanceUID)
            assert sender.send(late) == 0
        listener.step_until(2)
        event = next(
            event for event in listener.events() if event.type == STUDY_COMPLETED and event.data["study_version"] == 2
        )
        assert [each["sop_instance_uid"] for each in event.data["instances"]] == [late.SOPInstanceUID]


def test_what_retention_has_deleted_keeps_no_correction_out(url: str, tmp_path: Path) -> None:
    clock, stop = ManualClock(datetime.now(UTC)), threading.Event()
    with listening(url, tmp_path / "o") as listener:
        first = image()
        corrected = image(first.StudyInstanceUID, SOPInstanceUID=first.SOPInstanceUID, AccessionNumber="EX-0002")
        with Sender(listener.port) as sender:
            assert [sender.send(first), sender.send(corrected)] == [0, 0]
        listener.step_until(1)
        clock.advance(86_400 * 8)
        assert sweeper(listener, clock, KeyLocks()).expire(stop) == 2  # the second was kept beside
        with Sender(listener.port) as sender:
            assert sender.send(corrected) == 0
        listener.step_until(1)
        last = [event for event in listener.events() if event.type == STUDY_COMPLETED][-1]
        assert (last.data["study_version"], last.data["order"]["accession_number"]) == (2, "EX-0002")
        (listed,) = last.data["instances"]
        assert listener.store.exists(listed["object_ref"])


def test_what_is_kept_beside_the_first_expires(url: str, tmp_path: Path) -> None:
    clock, stop = ManualClock(datetime.now(UTC)), threading.Event()
    with listening(url, tmp_path / "o") as listener:
        first = image()
        with Sender(listener.port) as sender:
            assert sender.send(first) == 0
            assert sender.send(image(SOPInstanceUID=first.SOPInstanceUID)) == 0  # in a study of its own
        listener.step_until(1)
        assert sorted(row.valid for row in listener.rows(instances)) == [False, True]
        clock.advance(86_400 * 8)
        assert sweeper(listener, clock, KeyLocks()).expire(stop) == 2
        assert list(listener.store.keys("objects")) == []


def test_old_refusals_and_their_quarantine_go(url: str, tmp_path: Path) -> None:
    clock, stop = ManualClock(datetime.now(UTC)), threading.Event()
    with listening(url, tmp_path / "o") as listener:
        ds = image()
        with Sender(listener.port) as sender:
            assert sender.store(b"no data set at all", ds.SOPClassUID, ds.SOPInstanceUID) == 0xC000
        (refusal,) = listener.refusals()
        assert listener.store.exists(refusal.quarantine_key)
        sweeping = sweeper(listener, clock, KeyLocks())
        sweeping.sweep(stop)
        assert listener.store.exists(refusal.quarantine_key)
        clock.advance(86_400 * 91)
        sweeping.sweep(stop)
        assert list(listener.store.keys("quarantine")) == []
        assert listener.refusals() == []


def test_quarantine_goes_in_steps_and_with_the_last_refusal(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between a file and its row, the sweep ends its work the next time; what is refused again stays."""
    monkeypatch.setattr(sweep, "_BATCH", 2)
    clock, stop = ManualClock(datetime.now(UTC)), threading.Event()

    def refuse(listener: Listener, *contents: bytes) -> None:
        for content in contents:
            ds = image()
            with Sender(listener.port) as sender:
                assert sender.store(content, ds.SOPClassUID, ds.SOPInstanceUID) == 0xC000
        listener.refusals()

    with listening(url, tmp_path / "o") as listener:
        refuse(listener, *(f"no data set {number}".encode() for number in range(5)))
        old = {row.quarantine_key for row in listener.rows(refusals)}
        assert len(old) == 5
        with listener.database.write() as connection:
            connection.execute(refusals.update().values(at=clock.now() - timedelta(days=91)))
        sweeping = sweeper(listener, clock, KeyLocks())

        def killed(self: SqlObjectIndex, ids: Sequence[int]) -> None:
            raise SystemExit

        with monkeypatch.context() as patch:
            patch.setattr(SqlObjectIndex, "forget_refusals", killed)
            with pytest.raises(SystemExit):
                sweeping.sweep(stop)
        assert len(listener.rows(refusals)) == 5
        kept = [key for key in listener.store.keys("quarantine") if key.endswith(".dcm")]
        assert len(kept) == 3
        again = kept[0]
        with listener.database.write() as connection:
            row = next(row for row in listener.rows(refusals) if row.quarantine_key == again)._asdict()
            connection.execute(refusals.insert().values(**row | {"id": row["id"] + 100, "at": clock.now()}))
        sweeping.sweep(stop)
        assert [row.quarantine_key for row in listener.rows(refusals)] == [again]
        assert [key for key in listener.store.keys("quarantine") if key.endswith(".dcm")] == [again]
