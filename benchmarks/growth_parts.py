"""The four services' own code around one more study, and the looks that they take at their tables again and again.

Every study of the benchmark has a number of twelve digits, which is part of all its identifiers: so a study that went
through the services can be multiplied inside the database by replacing the number (`growth_tables.py`).
"""

from __future__ import annotations

import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

import console
import dicom_listener
import dispatcher
import fhir_writer
from console.adapters import tables as console_tables
from console.adapters.projection import SqlProjection
from console.adapters.queries import Queries, RefusalFilter, StudyFilter
from console.handlers import project
from dicom_listener.adapters import tables as listener_tables
from dicom_listener.adapters.commitments import SqlCommitments
from dicom_listener.adapters.ledger import SqlLedger
from dicom_listener.adapters.object_index import SqlObjectIndex
from dicom_listener.domain.completeness import CompletionReason
from dicom_listener.domain.header import ObjectHeader
from dicom_listener.handlers.receive import object_key
from dicom_listener.ports import Peer, StoredObject
from dispatcher.adapters import tables as dispatcher_tables
from dispatcher.adapters.relay import TaskRelay
from dispatcher.adapters.store import SqlUnits
from dispatcher.app import event_handlers
from dispatcher.domain.eligibility import Policy
from dispatcher.domain.jobs import Limits, job_id
from dispatcher.handlers import Handlers, outstanding
from fhir_writer.adapters import tables as writer_tables
from fhir_writer.adapters.schedule import SqlDeliveries
from fhir_writer.domain.outcome import Delivered
from fhir_writer.handlers.intake import Intake
from fhir_writer.ports import Change
from pipeline.bus import Message
from pipeline.clock import SystemClock, iso
from pipeline.consume import Inbox
from pipeline.database import Database
from pipeline.events import (
    REPORT_DELIVERED,
    REPORT_GENERATED,
    REPORT_REQUESTED,
    REPORT_STARTED,
    STUDY_COMPLETED,
    STUDY_OPENED,
    Event,
)
from pipeline.outbox import Outbox, OutboxRelay
from pipeline.store import LocalObjectStore

EXAMPLES = Path(__file__).parents[1] / "schemas" / "examples"
TEMPLATE = 777_777_777_777
MODEL = "growth"
LIFE = (STUDY_OPENED, STUDY_COMPLETED, REPORT_REQUESTED, REPORT_STARTED, REPORT_GENERATED, REPORT_DELIVERED)
Step = tuple[str, Callable[[], object]]


def study_uid(number: int) -> str:
    """StudyInstanceUID."""
    return f"2.25.{number:012d}"


def job_of(number: int) -> str:
    """The dispatcher's job for the study's first version."""
    return job_id(study_uid(number), 1, MODEL)


@functools.cache
def _example(type_: str) -> str:
    return (EXAMPLES / f"{type_}.json").read_text(encoding="utf-8")


def event(type_: str, number: int) -> Event:
    """The golden event of `schemas/examples`, told of this study, now."""
    sha256 = f"{number:012d}{'a' * 52}"
    example = Event.from_bytes(_example(type_).encode())
    known = {
        example.id: f"{LIFE.index(type_):08d}-0000-4000-8000-{number:012d}",
        example.subject: study_uid(number),
        iso(example.time): iso(datetime.now(UTC)),
        "2.25.99988877766655544433322211100099988877": f"{study_uid(number)}.1",
        "2.25.11122233344455566677788899900011122233": f"{study_uid(number)}.2",
        "objects/9f/86/9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08.dcm": object_key(sha256),
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08": sha256,
        "6f0d2c39-0f0a-5a58-9a58-7f6c1de7a001": job_of(number),
        "EX-0001": f"EX-{number:012d}",
        "PHANTOM-1": f"P-{number:012d}",
    }
    text = _example(type_)
    for old, new in known.items():
        text = text.replace(old, new)
    return Event.from_bytes(text.encode())


class Nowhere:
    """A bus and a task queue that take everything at once: databases are what is measured."""

    def publish(self, messages: Sequence[Message]) -> None:
        """Taken."""

    def enqueue(self, job: str, attempt: int, manifest: str, priority: str) -> None:
        """Taken."""

    def held(self) -> int:
        """All is well."""
        return 10**9

    def close(self) -> None:
        """Nothing to release."""


class Part(ABC):
    """One service on one database."""

    name: str
    tables: sa.MetaData
    migrations: Path

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.clock = SystemClock()
        self.store = LocalObjectStore(folder)
        database.migrate(self.migrations)

    @abstractmethod
    def study(self, number: int) -> Iterator[Step]:
        """What one more study costs this service, step by step."""

    @abstractmethod
    def looks(self) -> Iterator[Step]:
        """What it asks again and again, for itself or for people."""

    def relay(self, outbox: Outbox) -> OutboxRelay:
        """The outbox relay, to nowhere."""
        return OutboxRelay(self.database, outbox, Nowhere(), self.clock)

    def consume(self, inbox: Inbox, handle: Callable[[sa.Connection, Event], None], told: Event) -> None:
        """As `pipeline.consume.EventConsumer` does for each event."""
        with self.database.write() as connection:
            if inbox.first_time(connection, self.name, told, self.clock):
                handle(connection, told)


class Listener(Part):
    """dicom_listener: one object, completeness, outbox."""

    name, tables = "dicom_listener", listener_tables.metadata
    migrations = Path(dicom_listener.__file__).parent / "migrations"

    def stored(self, number: int) -> StoredObject:
        """What receiving hands to the ledger."""
        told = dict(event(STUDY_COMPLETED, number).data)
        instance = dict(told["instances"][0])
        uids = {key: instance.pop(key) for key in ("sop_class_uid", "sop_instance_uid", "series_instance_uid")}
        sha256, key = instance.pop("sha256"), instance.pop("object_ref")
        syntax, size = instance.pop("transfer_syntax_uid"), instance.pop("size_bytes")
        del instance["received_at"]
        fields = ("patient", "order", "study_id", "study_description", "study_started_at", "institution_name")
        header = ObjectHeader(
            **uids,
            study_instance_uid=told["study_instance_uid"],
            study={name: told[name] for name in fields},
            instance=instance,
        )
        return StoredObject(header, syntax, key, sha256, size, Peer("PACS", "ECHO", "127.0.0.1"))

    def study(self, number: int) -> Iterator[Step]:
        """One object of a new study until its events are sent."""
        ledger, stored = SqlLedger(self.database, "keep_first"), self.stored(number)
        yield "record", lambda: ledger.record(stored, self.clock.now())
        yield "release", lambda: ledger.mark_released({study_uid(number): self.clock.now()})

        def complete() -> None:
            for study in ledger.open_studies():
                assert ledger.complete(study, CompletionReason.ASSOCIATION_RELEASED, self.clock.now())

        yield "complete", complete
        yield "relay", self.relay(listener_tables.outbox).relay_once

    def looks(self) -> Iterator[Step]:
        """Duplicates, sweeping, commitments, pruning."""
        index, commitments = SqlObjectIndex(self.database, self.clock), SqlCommitments(self.database)
        duplicate = self.stored(TEMPLATE)
        keys = [object_key(f"{TEMPLATE + some:012d}{'a' * 52}") for some in range(200)]
        long_ago = self.clock.now() - timedelta(days=4000)
        yield "duplicate", lambda: SqlLedger(self.database, "keep_first").record(duplicate, self.clock.now())
        yield "open_studies", SqlLedger(self.database, "keep_first").open_studies
        yield "sweep_200_files", lambda: index.needed(keys)
        yield "nothing_to_expire", lambda: index.expire(long_ago, 20)
        yield "old_refusals", lambda: index.old_refusals(long_ago, 200)
        yield "commitments_due", lambda: commitments.due(self.clock.now(), 20)
        yield "commitment_of_one", lambda: commitments.objects([f"{study_uid(TEMPLATE)}.1"])
        yield "prune_outbox", self.relay(listener_tables.outbox).prune


class Dispatcher(Part):
    """dispatcher: the study's three events, the task handed over."""

    name, tables = "dispatcher", dispatcher_tables.metadata
    migrations = Path(dispatcher.__file__).parent / "migrations"

    def __init__(self, database: Database, folder: Path) -> None:
        super().__init__(database, folder)
        self.use_cases = Handlers(Policy(), Limits(), MODEL, self.clock)
        self.units = SqlUnits(database, self.clock)

    def study(self, number: int) -> Iterator[Step]:
        """From the study to the report."""
        handlers = event_handlers(self.use_cases, self.clock)
        tasks = TaskRelay(self.database, self.store, Nowhere(), self.clock, ahead=10**9)  # type: ignore[arg-type]  # takes all
        told = {type_: event(type_, number) for type_ in (STUDY_COMPLETED, REPORT_STARTED, REPORT_GENERATED)}
        for type_, each in told.items():
            handle = functools.partial(self.consume, dispatcher_tables.inbox, handlers[type_], each)
            yield type_.removeprefix("imaging.").removesuffix(".v1"), handle
            if type_ == STUDY_COMPLETED:
                yield "hand_over", tasks.relay_once
        yield "withdraw", tasks.relay_once
        yield "relay", self.relay(dispatcher_tables.outbox).relay_once

    def looks(self) -> Iterator[Step]:
        """The sweep, the gauges, what an operator lists."""

        def load() -> None:
            with self.units.read() as unit:
                outstanding(unit.load(), unit.awaited(), unit.waiting(), self.clock.now())

        def awaited() -> None:
            with self.units.read() as unit:
                unit.awaited()

        def lists() -> None:
            with self.units.read() as unit:
                unit.failed_jobs(50)
                unit.holds(50)
                unit.letters(50)

        yield "sweep", lambda: self.use_cases.sweep(self.units, Nowhere(), lambda: True)  # type: ignore[arg-type]
        yield "awaited", awaited
        yield "nothing_to_expire", lambda: self.use_cases.expire(self.units, timedelta(days=4000), threading.Event())
        yield "load", load
        yield "lists", lists
        yield "prune_inbox", lambda: dispatcher_tables.inbox.prune(self.database, self.clock)


class Writer(Part):
    """fhir_writer: the two events, the delivery's schedule."""

    name, tables = "fhir_writer", writer_tables.metadata
    migrations = Path(fhir_writer.__file__).parent / "migrations"

    def __init__(self, database: Database, folder: Path) -> None:
        super().__init__(database, folder)
        self.deliveries = SqlDeliveries(database, writer_tables.outbox, 60)

    def study(self, number: int) -> Iterator[Step]:
        """From the study to the delivered report, without the EHR's part."""
        handlers = Intake(self.deliveries, self.clock, threading.Event()).handlers()
        for type_ in (STUDY_COMPLETED, REPORT_GENERATED):
            handle = functools.partial(self.consume, writer_tables.inbox, handlers[type_], event(type_, number))
            yield type_.removeprefix("imaging.").removesuffix(".v1"), handle
        jobs: list[Any] = []
        yield "claim", lambda: jobs.extend(self.deliveries.claim(self.clock.now(), 4))
        yield "renew_leases", lambda: self.deliveries.renew_leases(self.clock.now())
        delivered = Change("delivered", None, 1, delivered=Delivered(str(number), "1", "created"))
        told = event(REPORT_DELIVERED, number)

        def settle() -> None:
            for job in jobs:
                self.deliveries.settle(job, delivered, told, self.clock.now())

        yield "settle", settle
        yield "relay", self.relay(writer_tables.outbox).relay_once

    def looks(self) -> Iterator[Step]:
        """Idle looks, gauges, what an operator lists."""
        yield "claim_nothing", lambda: self.deliveries.claim(self.clock.now(), 4)
        yield "count_waiting", lambda: self.deliveries.counts(("pending", "parked"))
        yield "count_all_hourly", self.deliveries.counts
        yield "wake_outage", lambda: self.deliveries.wake_outage(self.clock.now())
        yield "list_all", lambda: self.deliveries.listed(None, 50)
        yield "list_parked", lambda: self.deliveries.listed("parked", 50)
        yield "replay_parked", lambda: self.deliveries.replay(self.clock.now(), reason="patient_not_found")
        yield "drop_leases_at_start", self.deliveries.drop_all_leases
        yield "expire_hourly", lambda: self.deliveries.expire(datetime(2020, 1, 1, tzinfo=UTC), 200, self.clock.now())


class Console(Part):
    """console: every event of the study's life; what its pages ask."""

    name, tables = "console", console_tables.metadata
    migrations = Path(console.__file__).parent / "migrations"

    def study(self, number: int) -> Iterator[Step]:
        """The events of a study's whole life."""

        def handle(connection: sa.Connection, told: Event) -> None:
            project(SqlProjection(connection), told, self.clock.now())

        for type_ in LIFE:
            told = event(type_, number)
            named = type_.removeprefix("imaging.").removesuffix(".v1")
            yield named, functools.partial(self.consume, console_tables.inbox, handle, told)

    def looks(self) -> Iterator[Step]:
        """First pages, searches, counts, live changes."""
        queries, accession = Queries(self.database), f"EX-{TEMPLATE:012d}"
        anything = StudyFilter()
        yield "first_page", lambda: queries.studies(anything, None, 50)
        yield "by_accession", lambda: queries.studies(StudyFilter(accession=accession), None, 50)
        yield "by_patient", lambda: queries.studies(StudyFilter(patient_id=f"P-{TEMPLATE:012d}"), None, 50)
        yield "by_state", lambda: queries.studies(StudyFilter(state="delivered"), None, 50)
        yield "one_study", lambda: queries.study(study_uid(TEMPLATE))
        yield "waiting_for_delivery", lambda: queries.waiting_for_delivery(50)
        yield "problem_count", queries.problem_count
        yield "newest_changes", lambda: queries.newest_changes(50)
        yield "refusals", lambda: queries.refusals(RefusalFilter(), None, 50)
        yield "prune_inbox", lambda: console_tables.inbox.prune(self.database, self.clock)


PARTS: tuple[type[Part], ...] = (Listener, Dispatcher, Writer, Console)
