"""The writer's core on a database of its own, and two real FHIR servers: sekmet-fhir as a child process, HAPI FHIR."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import yaml

import fhir_writer
from fhir_writer.adapters.capability import Capability
from fhir_writer.adapters.fhir_http import FhirHttp
from fhir_writer.adapters.schedule import SqlDeliveries
from fhir_writer.adapters.tables import inbox, outbox
from fhir_writer.adapters.transaction_destination import TransactionDestination
from fhir_writer.domain import codes, resources
from fhir_writer.domain.schedule import CircuitBreaker, RetryPolicy
from fhir_writer.handlers.delivery import DeliverReport
from fhir_writer.handlers.intake import Intake
from integration.fhir_writer.fault_proxy import FaultProxy
from pipeline.clock import Clock, ManualClock
from pipeline.database import Database
from pipeline.events import Event
from servers.ports import free_port
from unit.fhir_writer import samples

MIGRATIONS = Path(fhir_writer.__file__).parent / "migrations"


class Ehr:
    """A test's own view of a FHIR server: everything through its REST interface."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.http = httpx.Client(
            base_url=base_url,
            timeout=120,
            trust_env=False,
            headers={"Cache-Control": "no-cache"},
            # The server may close an idle connection in the very moment in which it is used again.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def create(self, resource: dict[str, Any]) -> dict[str, Any]:
        answer = self.http.post(f"/{resource['resourceType']}", json=resource)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def put(self, resource: dict[str, Any]) -> dict[str, Any]:
        answer = self.http.put(f"/{resource['resourceType']}/{resource['id']}", json=resource)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    def search(self, kind: str, **params: str) -> list[dict[str, Any]]:
        answer = self.http.get(f"/{kind}", params={"_count": "100", **params})
        assert answer.status_code == 200, answer.text
        return [entry["resource"] for entry in answer.json().get("entry", ())]

    def reports(self, uid: str) -> list[dict[str, Any]]:
        value = resources.report_identifier(uid)
        return self.search("DiagnosticReport", identifier=f"{codes.REPORT_SYSTEM}|{value}")

    def observations(self, uid: str) -> dict[str, dict[str, Any]]:
        """Of a study, by finding; a double would fail the test."""
        found: dict[str, dict[str, Any]] = {}
        for name in codes.FINDINGS:
            value = resources.observation_identifier(uid, name)
            hits = self.search("Observation", identifier=f"{codes.OBSERVATION_SYSTEM}|{value}")
            assert len(hits) <= 1
            if hits:
                found[name] = hits[0]
        return found

    def provenances(self, report: dict[str, Any]) -> list[dict[str, Any]]:
        return self.search("Provenance", target=f"DiagnosticReport/{report['id']}")


class Sekmet:
    """One sekmet-fhir process that can be stopped and started again on the same data and port."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}/fhir"
        self._settings = folder / "settings.yaml"
        self._settings.write_text(
            yaml.safe_dump(
                {
                    "base_url": self.base_url,
                    "host": "127.0.0.1",
                    "port": self.port,
                    "data_dir": str(folder / "data"),
                    "log_inbound": False,
                    "simulator": {"enabled": False},
                }
            )
        )
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "sekmet.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).with_name("sekmet")), "serve", "-c", str(self._settings)],
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(f"{self.base_url}/metadata", timeout=30, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass  # not listening yet
            time.sleep(0.1)
        raise AssertionError((self._folder / "sekmet.log").read_text()[-2000:])

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def sekmet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sekmet]:
    server = Sekmet(tmp_path_factory.mktemp("sekmet"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(params=["sekmet", pytest.param("hapi", marks=pytest.mark.needs("hapi"))])
def ehr(request: pytest.FixtureRequest) -> Iterator[Ehr]:
    """Each test that takes it runs once against each server."""
    if request.param == "sekmet":
        url = request.getfixturevalue("sekmet").base_url
    else:
        url = request.getfixturevalue("hapi_url")
    view = Ehr(url.rstrip("/"))
    yield view
    view.http.close()


@dataclass
class Writer:
    """The service without its process: what it consumes is fed, due deliveries run when told to."""

    database: Database
    deliveries: SqlDeliveries
    deliver: DeliverReport
    intake: Intake
    clock: Clock
    fhir: FhirHttp
    seen: int = 0
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)

    def feed(self, *events: Event) -> None:
        """As the consumer does: one transaction an event, with its inbox row."""
        for event in events:
            with self.database.write() as connection:
                if inbox.first_time(connection, "fhir_writer", event, self.clock):
                    self.intake.handlers()[event.type](connection, event)

    def run_due(self) -> int:
        """Work on everything that is due now; returns how many attempts that were."""
        jobs = self.deliveries.claim(self.clock.now(), 100)
        for job in jobs:
            self.deliver.attempt(job)
        return len(jobs)

    def advance(self, seconds: float) -> None:
        assert isinstance(self.clock, ManualClock)
        self.clock.advance(seconds)

    def events(self) -> list[dict[str, Any]]:
        """Events written since the last call, as (type, data) merged in one dictionary."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(outbox.table).order_by(outbox.table.c.id)).all()
        fresh = rows[self.seen :]
        self.seen = len(rows)
        documents = [json.loads(row.payload) for row in fresh]
        return [{"type": document["type"], **document["data"]} for document in documents]

    def row(self, uid: str) -> dict[str, Any]:
        return next(row for row in self.deliveries.listed(None, 500) if row["study_instance_uid"] == uid)


MakeWriter = Callable[..., Writer]


@pytest.fixture
def make_writer(tmp_path: Path) -> Iterator[MakeWriter]:
    """`make_writer(base_url)`: a writer on a new SQLite database, or on `database_url`."""
    made: list[Writer] = []

    def make(
        base_url: str,
        *,
        database_url: str | None = None,
        clock: Clock | None = None,
        park_out_of_domain: bool = False,
        breaker: CircuitBreaker | None = None,
        timeout_s: float = 120.0,
        **policy: float,
    ) -> Writer:
        database = Database(database_url or f"sqlite:///{tmp_path}/writer-{len(made)}.sqlite3")
        database.migrate(MIGRATIONS)
        time_source = clock or ManualClock(samples.NOW)
        fhir = FhirHttp(base_url, timeout_s=timeout_s)
        deliveries = SqlDeliveries(database, outbox, 15.0)
        breaker = breaker or CircuitBreaker(failures=1000)
        deliver = DeliverReport(
            deliveries,
            TransactionDestination(
                fhir,
                Capability(fhir, time_source),
                samples.SITE,
                patient_systems={},
                default_patient_system=codes.DEFAULT_PATIENT_SYSTEM,
                link_orders=True,
            ),
            time_source,
            policy=RetryPolicy(**policy),
            breaker=breaker,
            fhir_server=base_url,
            park_out_of_domain=park_out_of_domain,
            chance=random.Random(0),
        )
        writer = Writer(
            database,
            deliveries,
            deliver,
            Intake(deliveries, time_source, threading.Event()),
            time_source,
            fhir,
            breaker=breaker,
        )
        made.append(writer)
        return writer

    yield make
    for writer in made:
        writer.fhir.close()
        writer.database.close()


@pytest.fixture
def mrn(unique: str) -> str:
    """A patient ID that no server knows yet."""
    return f"MRN-{unique}"


@pytest.fixture
def registered(ehr: Ehr, mrn: str) -> dict[str, Any]:
    """A Patient with `mrn` at the server."""
    return ehr.create(samples.patient(mrn, codes.DEFAULT_PATIENT_SYSTEM))


@pytest.fixture
def proxy(ehr: Ehr) -> Iterator[FaultProxy]:
    """A fault-injecting proxy in front of `ehr`."""
    between = FaultProxy(ehr.base_url)
    yield between
    between.close()
