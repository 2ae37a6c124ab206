"""The whole flow under test, in both modes behind the same few calls."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import httpx
import pydicom
import sqlalchemy as sa
from pydicom.uid import UID
from pynetdicom import AE

from fhir_writer.domain.codes import DEFAULT_PATIENT_SYSTEM
from servers import env
from servers.databases import drop_database
from servers.ports import free_port

PYTHON = sys.executable
T = TypeVar("T")
AE_TITLE = "ECHO"
QUIET_SECONDS = 2.0
REPORTED_S = 600.0
"""For a report, or a process that starts again, on the way to it: two minutes go by until a worker with its model is
back on a machine that does much else."""


def wait_until(
    what: str,
    ask: Callable[[], T],
    timeout_s: float = 300.0,
    every_s: float = 0.2,
    *,
    done: Callable[[T], object] = bool,
) -> T:
    """Return the first answer that is `done`; fails with the last one."""
    deadline = time.monotonic() + timeout_s
    last: T | str = "nothing"
    while time.monotonic() < deadline:
        try:
            last = answer = ask()
            if done(answer):
                return answer
        except (httpx.HTTPError, OSError) as error:
            last = type(error).__name__
        time.sleep(every_s)
    raise AssertionError(f"not within {timeout_s:.0f} s: {what}; last answer: {last!r}")


PATIENT_KNOWN = {"ECHO_PATIENT_MATCH_GRACE_SECONDS": "600"}
"""For tests in which the embedded registration, however late, comes before a report is parked for its patient."""


class Flow(Protocol):
    """A running system."""

    dicom_port: int
    console_url: str
    fhir_url: str

    def sigkill(self, service: str) -> None:
        """SIGKILL the process and see to it that it runs again."""

    def register(self, patient_id: str, birth_date: str, sex: str) -> None:
        """Make the patient known to the EHR, as the hospital's registration does."""


class EmbeddedFlow:
    """`python -m standalone serve`; the supervisor restarts what dies."""

    def __init__(self, folder: Path, *args: str, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.dicom_port, self.http_port = free_port(), free_port()
        self.console_url = f"http://127.0.0.1:{self.http_port}"
        self.fhir_url = f"{self.console_url}/fhir"
        self._args = args
        self._env = env or {}
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [PYTHON, "-m", "standalone", "serve", "--data-dir", str(self.folder),
                 "--dicom-port", str(self.dicom_port),
                 "--http-port", str(self.http_port), "--quiet-seconds", str(QUIET_SECONDS), *self._args],
                stdout=log, stderr=log, env={**os.environ, **self._env},
            )  # fmt: skip
        return self.process

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, (self.folder.parent / f"{self.folder.name}.log").read_text()[-3000:]
            return httpx.get(f"{self.console_url}/readyz", timeout=30).status_code == 200

        wait_until("everything ready", ready, REPORTED_S)

    def pid(self, service: str) -> int:
        return int(json.loads((self.folder / "run" / f"{service}.pid.json").read_text())["pid"])

    def sigkill(self, service: str) -> None:
        os.kill(self.pid(service), signal.SIGKILL)

    def register(self, patient_id: str, birth_date: str, sex: str) -> None:
        """The embedded registration does it when the study completes."""

    def stop(self) -> None:
        self.process.terminate()
        try:
            # It ends its children one after the other, and kills each that takes more than a minute.
            status = self.process.wait(600)
        finally:
            self.process.kill()  # does nothing to one that ended
            self.process.wait()
        assert status == 0, (self.folder.parent / f"{self.folder.name}.log").read_text()[-3000:]


class ClusterFlow:
    """Each service its own process on Kafka, Redis, PostgreSQL and HAPI FHIR; the harness plays Kubernetes.

    `settings` go over its own. `postgres` is the `host:port` at which the services reach the database.
    """

    def __init__(
        self,
        folder: Path,
        redis_url: str,
        topic_prefix: str,
        settings: Mapping[str, str] | None = None,
        postgres: str | None = None,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.dicom_port = free_port()
        self.fhir_url = env.hapi_url()
        self._ports = {name: free_port() for name in self.SERVICES}
        self.console_url = f"http://127.0.0.1:{self._ports['console']}"
        self._postgres = seen = sa.make_url(env.postgres_url())
        if postgres is not None:
            host, _, port = postgres.rpartition(":")
            seen = seen.set(host=host, port=int(port))
        self._run = uuid.uuid4().hex[:8]
        self._databases = {name: f"e2e_{self._run}_{name}" for name in self.SERVICES if name != "inference_worker"}
        self._database_urls = {
            name: seen.set(database=database).render_as_string(hide_password=False)
            for name, database in self._databases.items()
        }
        with self.database() as connection:
            for database in self._databases.values():
                connection.execute(sa.text(f'CREATE DATABASE "{database}"'))
        self._common = {
            "ECHO_BUS_URL": f"kafka://{env.kafka_bootstrap()}",
            "ECHO_BUS_TOPIC_PREFIX": topic_prefix,
            "ECHO_OBJECT_STORE_URL": f"file://{folder}/objects",
            "ECHO_BROKER_URL": redis_url,
            "ECHO_FHIR_BASE_URL": self.fhir_url,
            "ECHO_DICOM_HOST": "127.0.0.1",
            "ECHO_DICOM_PORT": str(self.dicom_port),
            "ECHO_AE_TITLE": AE_TITLE,
            "ECHO_QUIET_SECONDS": str(QUIET_SECONDS),
            # Short, so that a killed worker's tasks come back within the test; five times what a busy machine needs.
            "ECHO_REQUEST_DEADLINE_S": "60",
            "ECHO_WATCHDOG_S": "65",
            "ECHO_TERMINATION_GRACE_S": "80",
            "ECHO_VISIBILITY_TIMEOUT_S": "75",
            "ECHO_RUN_DEADLINE_S": "90",
            "PYTHONFAULTHANDLER": "1",
            **(settings or {}),
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in self.SERVICES:
            self.start(name)

    SERVICES = ("dicom_listener", "dispatcher", "inference_worker", "fhir_writer", "console")

    @contextlib.contextmanager
    def database(self, service: str | None = None) -> Iterator[sa.Connection]:
        """A connection to the database of a service; without one, to the maintenance database."""
        url = self._postgres.set(database=self._databases[service]) if service else self._postgres
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            yield connection
        engine.dispose()

    def start(self, name: str) -> None:
        env = {**os.environ, **self._common, "ECHO_HTTP_HOST": "127.0.0.1", "ECHO_HTTP_PORT": str(self._ports[name])}
        if name in self._database_urls:
            env["ECHO_DATABASE_URL"] = self._database_urls[name]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen([PYTHON, "-m", name], stdout=log, stderr=log, env=env)

    def wait_ready(self) -> None:
        for name, port in self._ports.items():

            def ready(name: str = name, port: int = port) -> bool:
                assert self.processes[name].poll() is None, (self.folder / f"{name}.log").read_text()[-3000:]
                return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=30).status_code == 200

            wait_until(f"{name} ready", ready, REPORTED_S)

    def sigkill(self, service: str) -> None:
        self.processes[service].kill()
        self.processes[service].wait()
        self.start(service)

    def register(self, patient_id: str, birth_date: str, sex: str) -> None:
        system = DEFAULT_PATIENT_SYSTEM
        patient = {
            "resourceType": "Patient",
            "identifier": [{"system": system, "value": patient_id}],
            "birthDate": birth_date,
            "gender": {"M": "male", "F": "female", "O": "other"}[sex],
        }
        answer = httpx.post(
            f"{self.fhir_url}/Patient",
            json=patient,
            headers={
                "content-type": "application/fhir+json",
                "if-none-exist": f"identifier={quote(system)}|{patient_id}",
            },
            timeout=120,
        )
        assert answer.status_code in (200, 201), answer.text

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        ends = {name: self._end_of(name) for name in self.processes}
        for database in self._databases.values():
            drop_database(database)
        assert set(ends.values()) == {"0"}, ends

    def _end_of(self, name: str) -> str:
        """The exit status; of a process that does not end, what it was at."""
        process = self.processes[name]
        try:
            return str(process.wait(180))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # writes where each thread is
            process.wait()
            return f"did not end: {(self.folder / f'{name}.log').read_text()[-3000:]}"


class Study:
    """One study of one patient, made of a phantom, with identifiers of this run."""

    def __init__(self, template: Path, run: str, number: int) -> None:
        ds = pydicom.dcmread(template)
        self.patient_id = f"E2E-{run}-{number}"
        self.accession = f"A{run}{number:03d}"
        self.uid = str(UID(f"2.25.{uuid.uuid4().int}"))
        ds.PatientID, ds.AccessionNumber, ds.StudyInstanceUID = self.patient_id, self.accession, self.uid
        ds.PatientName = f"PHANTOM^{number}"
        self.birth_date = f"{ds.PatientBirthDate[:4]}-{ds.PatientBirthDate[4:6]}-{ds.PatientBirthDate[6:8]}"
        self.sex = str(ds.PatientSex)
        ds.SeriesInstanceUID = f"2.25.{uuid.uuid4().int}"
        self._ds = ds

    def image(self) -> pydicom.Dataset:
        """Another image of the study, of its own SOP Instance UID."""
        ds = pydicom.Dataset(self._ds)
        ds.SOPInstanceUID = f"2.25.{uuid.uuid4().int}"
        ds.file_meta = pydicom.dataset.FileMetaDataset(self._ds.file_meta)
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        return ds

    def file(self, folder: Path) -> Path:
        path = folder / f"{uuid.uuid4().hex}.dcm"
        self.image().save_as(path, enforce_file_format=True)
        return path


def send(ds: pydicom.Dataset, port: int) -> int:
    """C-STORE by pynetdicom; returns the status (as a PACS would see it), 0xFFFF for none."""
    ae = AE(ae_title="MODALITY")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 120
    ae.add_requested_context(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID)
    assoc = ae.associate("127.0.0.1", port, ae_title=AE_TITLE)
    if not assoc.is_established:
        return 0xFFFF
    status = assoc.send_c_store(ds)
    assoc.release()
    return int(status.Status) if "Status" in status else 0xFFFF


def study_of(flow: Flow, uid: str) -> dict[str, Any]:
    answer = httpx.get(f"{flow.console_url}/api/studies/{uid}", timeout=30)
    return answer.json() if answer.status_code == 200 else {}


def wait_delivered(flow: Flow, uid: str, version: int = 1, timeout_s: float = REPORTED_S) -> dict[str, Any]:
    def delivered(study: dict[str, Any]) -> bool:
        assert study.get("state") not in ("failed", "skipped", "parked"), study.get("reason")
        return study.get("state") == "delivered" and study["version"] == version

    return wait_until(f"version {version} delivered", lambda: study_of(flow, uid), timeout_s, done=delivered)


def reports_of(flow: Flow, patient_id: str) -> list[dict[str, Any]]:
    """All DiagnosticReports of the patient at the FHIR server."""
    answer = httpx.get(
        f"{flow.fhir_url}/DiagnosticReport",
        params={"subject:Patient.identifier": f"{DEFAULT_PATIENT_SYSTEM}|{patient_id}", "_count": "50"},
        headers={"cache-control": "no-cache"},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    return [entry["resource"] for entry in answer.json().get("entry", [])]
