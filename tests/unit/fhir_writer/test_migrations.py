"""An upgrade keeps what stands in the tables."""

from __future__ import annotations

from pathlib import Path

import alembic.command
import alembic.config
import pytest
import sqlalchemy as sa

import fhir_writer
from fhir_writer.adapters.schedule import SqlDeliveries
from fhir_writer.adapters.tables import deliveries, metadata, outbox
from pipeline.database import Database
from unit.fhir_writer.samples import NOW, generated, new_uid

MIGRATIONS = Path(fhir_writer.__file__).parent / "migrations"


def test_the_new_state_is_allowed_and_every_row_and_index_is_kept(tmp_path: Path) -> None:
    database, uid = Database(f"sqlite:///{tmp_path}/writer.sqlite3"), new_uid()
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "0002")
        event = generated(uid)
        row = {c.name: c.default for c in deliveries.c if c.nullable} | {
            "study_instance_uid": uid,
            "study_version": 1,
            "job_id": event.data["job_id"],
            "report": dict(event.data),
            "written_at": NOW,
            "traceparent": "x",
            "state": "pending",
            "next_attempt_at": NOW,
            "updated_at": NOW,
        }
        connection.execute(sa.insert(deliveries).values(**row))
    database.migrate(MIGRATIONS)
    inspector = sa.inspect(database.engine)
    for table in metadata.sorted_tables:
        assert {i["name"] for i in inspector.get_indexes(table.name)} == {i.name for i in table.indexes}
        assert [c["name"] for c in inspector.get_columns(table.name)] == table.c.keys()
    (job,) = SqlDeliveries(database, outbox, 15.0).claim(NOW, 1)
    assert (job.study_instance_uid, job.report["impression"]) == (uid, event.data["impression"])
    with database.write() as connection:
        connection.execute(deliveries.update().values(state="withdrawn"))
    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        connection.execute(deliveries.update().values(state="lost"))
    database.close()
