"""The console's projection behind real buses' consumers and on both databases."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from console.adapters import tables
from console.adapters.projection import SqlProjection, begin_generation
from console.handlers import project
from pipeline.bus import Message
from pipeline.clock import SystemClock
from pipeline.consume import EventConsumer
from pipeline.events import ALL_TOPICS, STUDY_COMPLETED, Event, dead_letter_topic
from pipeline.sql_bus import SqlBus
from unit.console.study_events import StudyEvents
from unit.console.web_client import Console


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgres"))])
def console(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Console]:
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/console.sqlite3" if sqlite else request.getfixturevalue("postgres_url")
    running = Console(url, tmp_path)
    yield running
    running.close()


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[SqlBus]:
    running = SqlBus(f"sqlite:///{tmp_path}/bus.sqlite3", partitions=2)
    running.ensure_topics(ALL_TOPICS)
    yield running
    running.close()


def publish(bus: SqlBus, messages: Sequence[Message]) -> None:
    producer = bus.producer()
    producer.publish(messages)
    producer.close()


def of(events: Sequence[Event]) -> list[Message]:
    return [Message(event.topic, event.key, event.to_bytes()) for event in events]


def consume_all(bus: SqlBus, console: Console, group: str) -> None:
    def handle(connection: Connection, event: Event) -> None:
        project(SqlProjection(connection), event, datetime.now(UTC))

    consumer = EventConsumer(
        bus, group, dict.fromkeys(ALL_TOPICS, handle), console.database, tables.inbox, SystemClock(), backoff_s=0.0
    )
    try:
        while bus.lag(group, ALL_TOPICS) or consumer.step(threading.Event(), timeout_s=0.1):
            consumer.step(threading.Event(), timeout_s=0.2)
    finally:
        consumer.close()


def lines(console: Console) -> dict[str, tuple[str, str | None]]:
    items = console.http.get("/api/studies").json()["items"]
    return {i["accession_number"]: (i["state"], i["reason"]["code"] if i["reason"] else None) for i in items}


def test_events_of_all_topics_become_studies_and_dead_letters(bus: SqlBus, console: Console) -> None:
    good, given_up, poisoned = StudyEvents(1), StudyEvents(2), StudyEvents(3)
    letter = given_up.dead_letter(STUDY_COMPLETED, "dispatcher")
    publish(bus, of(good.all_delivered()))
    publish(bus, of([given_up.opened(), given_up.completed()]))
    publish(bus, [Message(dead_letter_topic(STUDY_COMPLETED), letter.key, letter.to_bytes())])
    publish(bus, [Message(STUDY_COMPLETED, poisoned.uid, b'{"not": "an event"}'), *of([poisoned.opened()])])
    consume_all(bus, console, "console")
    assert lines(console) == {
        "EX-0001": ("delivered", None),
        "EX-0002": ("failed", "dead_letter"),
        "EX-0003": ("receiving", None),
    }
    # The poison became a dead letter of the console's own, which it then read back.
    letters = console.http.get("/api/dead-letters").json()["items"]
    assert {(letter["consumer"], letter["error_code"]) for letter in letters} == {
        ("dispatcher", "not_cloudevents"),
        ("console", "not_cloudevents"),
    }


def test_a_new_generation_is_filled_again_from_the_topics(bus: SqlBus, console: Console) -> None:
    publish(bus, of(StudyEvents(1).all_delivered()))
    consume_all(bus, console, "console")
    with console.database.write() as connection:
        connection.execute(tables.studies.update().values(state="failed", accession_number="WRONG"))
    begin_generation(console.database, 1)  # the same generation: nothing is touched
    assert "WRONG" in lines(console)
    begin_generation(console.database, 2)
    assert lines(console) == {}
    consume_all(bus, console, "console-2")
    assert lines(console) == {"EX-0001": ("delivered", None)}


def test_an_older_generation_does_not_empty_what_it_could_not_fill(
    bus: SqlBus, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(bus, of(StudyEvents(1).all_delivered()))
    begin_generation(console.database, 2)
    consume_all(bus, console, "console-2")
    with pytest.raises(SystemExit) as ended:  # its group has read the topics to their ends
        begin_generation(console.database, 1)
    assert ended.value.code == 2
    assert "ECHO_PROJECTION_GENERATION: is 1; the read model was built as 2" in capsys.readouterr().err
    assert lines(console) == {"EX-0001": ("delivered", None)}


def test_consumers_side_by_side_lose_no_fact(console: Console) -> None:
    studies = [StudyEvents(number) for number in range(8)]
    each = [study.all_delivered() for study in studies]
    with ThreadPoolExecutor(6) as pool:  # one consumer for each topic, all on the same study at the same time
        for events in each:
            list(pool.map(lambda event: console.feed([event]), events))
    assert set(lines(console).values()) == {("delivered", None)}
    with console.database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(tables.facts)) == 8 * 6


def test_pages_of_results_search_and_image_lookup(console: Console) -> None:
    for number in range(5):
        console.feed([StudyEvents(number).opened(), StudyEvents(number).completed()])
    first = console.http.get("/api/studies?limit=3").json()
    second = console.http.get(f"/api/studies?limit=3&cursor={first['next']}").json()
    assert len(first["items"]) == 3
    assert len(second["items"]) == 2
    assert second["next"] is None
    assert len(console.http.get("/api/studies?patient_id=PHANTOM-3&state=complete").json()["items"]) == 1
    study = console.http.get(f"/api/studies/{StudyEvents(2).uid}").json()
    assert len(study["images"]) == 1
    assert console.http.get("/").status_code == console.http.get("/problems").status_code == 200


def test_the_migrations_make_the_tables_that_the_code_expects(console: Console) -> None:
    inspector = sa.inspect(console.database.engine)
    for table in tables.metadata.sorted_tables:
        found = {column["name"]: column["nullable"] for column in inspector.get_columns(table.name)}
        assert found == {column.name: column.nullable for column in table.columns}, table.name
        assert {i["name"] for i in inspector.get_indexes(table.name)} == {i.name for i in table.indexes}


def test_an_instance_number_of_many_digits_hides_no_study(bus: SqlBus, console: Console) -> None:
    """Some devices count by the clock; an integer string holds twelve characters (PS3.5 6.2)."""
    study = StudyEvents()
    publish(bus, of([study.opened(), study.completed(instances=[{"instance_number": 202_601_050_812}])]))
    consume_all(bus, console, "console")
    assert lines(console) == {study.accession: ("complete", None)}


@pytest.mark.parametrize("version", ["true", "99999999999", "[" * 100_000])
def test_whatever_was_given_up_is_listed(bus: SqlBus, console: Console, version: str) -> None:
    study = StudyEvents()
    publish(bus, of([study.opened()]))
    letter = study.dead_letter(STUDY_COMPLETED, "dispatcher", b'{"data": {"study_version": %s}}' % version.encode())
    publish(bus, [Message(dead_letter_topic(STUDY_COMPLETED), letter.key, letter.to_bytes())])
    consume_all(bus, console, "console")
    (listed,) = console.http.get("/api/dead-letters").json()["items"]
    assert listed["event_id"] == letter.id
    assert console.http.get(f"/api/studies/{study.uid}").json()["timeline"][-1]["event"] == letter.type
