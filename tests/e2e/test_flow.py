"""Twenty studies through the whole flow, in both modes, with processes killed in the middle."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from e2e.flow import (
    AE_TITLE,
    PATIENT_KNOWN,
    REPORTED_S,
    ClusterFlow,
    EmbeddedFlow,
    Flow,
    Study,
    reports_of,
    send,
    study_of,
    wait_delivered,
    wait_until,
)
from servers import env
from servers.databases import kafka_topics_removed, redis_database

COUNT = 20


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("phantoms")
    command = [
        str(Path(sys.executable).with_name("echo-model")),
        "phantoms",
        "--out",
        str(folder),
        "--count",
        str(COUNT),
        "--seed",
        "77",
        "--dicom",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return sorted(folder.glob("*.dcm"))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedFlow]:
    flow = EmbeddedFlow(tmp_path_factory.mktemp("embedded") / "data", env=PATIENT_KNOWN)
    try:
        flow.wait_ready()
        yield flow
    finally:
        flow.stop()


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ClusterFlow]:
    with redis_database() as redis_url, kafka_topics_removed(env.kafka_bootstrap()) as prefix:
        flow = ClusterFlow(tmp_path_factory.mktemp("cluster"), redis_url, prefix)
        try:
            flow.wait_ready()
            yield flow
        finally:
            flow.stop()


@pytest.fixture(
    params=[
        pytest.param("embedded", marks=pytest.mark.needs("dcmtk", "orthanc")),
        pytest.param("cluster", marks=pytest.mark.needs("kafka", "redis", "postgres", "hapi", "dcmtk", "orthanc")),
    ]
)
def flow(request: pytest.FixtureRequest) -> Flow:
    running: Flow = request.getfixturevalue(request.param)
    return running


def _storescu(path: Path, port: int) -> None:
    program = env.tool("storescu")
    assert program is not None
    done = subprocess.run(
        [program, "-aet", "DCMTK", "-aec", AE_TITLE, "127.0.0.1", str(port), str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def _route_through_orthanc(path: Path, port: int) -> None:
    """As a PACS with an auto-route destination: Orthanc takes the file and sends it on by C-STORE."""
    modality = f"{env.orthanc_url()}/modalities/echo{port}"
    destination = {"AET": AE_TITLE, "Host": "127.0.0.1", "Port": port}
    httpx.put(modality, json=destination, timeout=120).raise_for_status()
    try:
        content = path.read_bytes()
        stored = httpx.post(f"{env.orthanc_url()}/instances", content=content, timeout=120).raise_for_status().json()
        httpx.post(f"{modality}/store", json=stored["ID"], timeout=120).raise_for_status()
    finally:
        httpx.delete(modality, timeout=120).raise_for_status()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_twenty_studies_are_reported_once_each_although_processes_are_killed(
    flow: Flow, phantoms: list[Path], tmp_path: Path
) -> None:
    run = uuid.uuid4().hex[:6]
    studies = [Study(phantoms[n], run, n) for n in range(COUNT)]
    for study in studies:
        flow.register(study.patient_id, study.birth_date, study.sex)
    failures: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # told to the main thread below
            failures.append(error)

    def by_pynetdicom() -> None:
        for study in studies[0::2]:
            assert send(study.image(), flow.dicom_port) == 0x0000

    def by_dcmtk_and_orthanc() -> None:
        for number, study in enumerate(studies[1::2]):
            if number % 3 == 0:
                _route_through_orthanc(study.file(tmp_path), flow.dicom_port)
            else:
                _storescu(study.file(tmp_path), flow.dicom_port)

    senders = [threading.Thread(target=guarded, args=(work,)) for work in (by_pynetdicom, by_dcmtk_and_orthanc)]
    for sender in senders:
        sender.start()

    def one_is(*states: str) -> bool:
        assert not failures, failures
        return any(study_of(flow, study.uid).get("state") in states for study in studies)

    # In the middle: some studies are waiting, some are in the model, some are on their way to the EHR.
    wait_until("a study in the model", lambda: one_is("running", "generated", "delivered"), REPORTED_S)
    flow.sigkill("inference_worker")
    wait_until("a draft on its way or there", lambda: one_is("generated", "delivered"), REPORTED_S)
    flow.sigkill("fhir_writer")
    for sender in senders:
        sender.join()
    assert not failures, failures

    delivered = {study.uid: wait_delivered(flow, study.uid) for study in studies}
    for study in studies:
        (report,) = reports_of(flow, study.patient_id)
        assert report["status"] == "preliminary"
        assert delivered[study.uid]["fhir"]["url"].endswith(f"DiagnosticReport/{report['id']}")
        assert delivered[study.uid]["accession_number"] == study.accession

    late = studies[3]
    (before,) = reports_of(flow, late.patient_id)
    assert send(late.image(), flow.dicom_port) == 0x0000
    second = wait_delivered(flow, late.uid, version=2)
    (after,) = reports_of(flow, late.patient_id)
    assert after["id"] == before["id"]
    assert int(after["meta"]["versionId"]) > int(before["meta"]["versionId"])
    assert second["fhir"]["version_id"] == after["meta"]["versionId"]

    listed = httpx.get(f"{flow.console_url}/api/studies", params={"accession": late.accession}, timeout=120).json()[
        "items"
    ]
    assert [(item["study_instance_uid"], item["state"], item["version"]) for item in listed] == [
        (late.uid, "delivered", 2)
    ]
    assert sum(len(reports_of(flow, study.patient_id)) for study in studies) == COUNT
