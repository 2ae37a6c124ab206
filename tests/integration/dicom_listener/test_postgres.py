"""The same parts on PostgreSQL: migration, locks between senders, events."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_listener.adapters.tables import instances, metadata
from integration.dicom_listener.peers import DX, Listener, Sender, encoded, image, listening, new_uid
from pipeline.events import STUDY_COMPLETED, STUDY_OPENED

pytestmark = pytest.mark.needs("postgres")


def test_migrations_make_the_tables_of_the_code(postgres_url: str, tmp_path: Path) -> None:
    with listening(postgres_url, tmp_path / "objects") as listener:
        check_tables(listener)


def check_tables(listener: Listener) -> None:
    inspector = sa.inspect(listener.database.engine)
    for table in metadata.sorted_tables:
        assert {c["name"] for c in inspector.get_columns(table.name)} == set(table.columns.keys())
        assert {i["name"] for i in inspector.get_indexes(table.name) if "duplicates_constraint" not in i} == {
            i.name for i in table.indexes
        }


def test_parallel_senders_of_one_study(postgres_url: str, tmp_path: Path) -> None:
    study, shared = new_uid(), image()
    statuses: list[int | None] = []
    shared.StudyInstanceUID = study

    def send(number: int) -> None:
        with Sender(listener.port, calling=f"S{number}") as sender:
            statuses.append(sender.store(encoded(shared), DX, shared.SOPInstanceUID))
            statuses.extend(sender.send(image(study)) for _ in range(4))

    with listening(postgres_url, tmp_path / "objects") as listener:
        threads = [threading.Thread(target=send, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [0] * 30
        listener.step_until(1)
        opened, completed = listener.events()
        assert (opened.type, completed.type) == (STUDY_OPENED, STUDY_COMPLETED)
        assert len(completed.data["instances"]) == 25
        assert listener.study(study).instance_count == 25
        with Sender(listener.port) as sender:
            assert sender.send(image(study)) == 0
        listener.step_until(1)
        assert listener.events()[-1].data["study_version"] == 2
        assert sum(row.duplicates for row in listener.rows(instances)) == 5


def test_replacing_on_postgres(postgres_url: str, tmp_path: Path) -> None:
    with listening(postgres_url, tmp_path / "objects", policy="replace") as listener:
        ds = image()
        changed = image(ds.StudyInstanceUID, SOPInstanceUID=ds.SOPInstanceUID, AccessionNumber="EX-0002")
        with Sender(listener.port) as sender:
            assert [sender.send(each) for each in (ds, changed, ds, ds)] == [0] * 4
        assert sorted((row.valid, row.duplicates) for row in listener.rows(instances)) == [(False, 0), (True, 1)]
        assert listener.study(ds.StudyInstanceUID).instance_count == 1
