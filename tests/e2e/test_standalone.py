"""The standalone process tree: what it refuses, what it survives, and what people find when a study gets no report."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pydicom
import pytest
from safetensors.numpy import load_file, save_file

from e2e.flow import (
    PATIENT_KNOWN,
    REPORTED_S,
    EmbeddedFlow,
    Study,
    reports_of,
    send,
    study_of,
    wait_delivered,
    wait_until,
)
from fhir_writer.domain.codes import DEFAULT_PATIENT_SYSTEM
from servers.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    command = [str(Path(sys.executable).with_name("echo-model")), "phantoms", "--out", str(folder), "--count", "1"]
    subprocess.run([*command, "--seed", "3", "--dicom"], check=True, capture_output=True)
    (path,) = folder.glob("*.dcm")
    return path


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedFlow]:
    # Without registration: a patient is unknown until the test makes one.
    running = EmbeddedFlow(
        tmp_path_factory.mktemp("standalone") / "data",
        "--register-patients", "none", "--out-of-domain", "park",
        env={"ECHO_PATIENT_MATCH_GRACE_SECONDS": "1", "ECHO_MISSING_EVIDENCE": "ask"},
    )  # fmt: skip
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


def _register(flow: EmbeddedFlow, study: Study) -> None:
    patient = {
        "resourceType": "Patient",
        "identifier": [{"system": DEFAULT_PATIENT_SYSTEM, "value": study.patient_id}],
        "birthDate": study.birth_date,
        "gender": {"M": "male", "F": "female", "O": "other"}[study.sex],
    }
    headers = {"content-type": "application/fhir+json"}
    httpx.post(f"{flow.fhir_url}/Patient", json=patient, headers=headers, timeout=120).raise_for_status()


def _ends_as(flow: EmbeddedFlow, uid: str, state: str) -> dict[str, Any]:
    return wait_until(f"state {state}", lambda: study_of(flow, uid), REPORTED_S, done=lambda s: s.get("state") == state)


def _run() -> str:
    return uuid.uuid4().hex[:6]


def _ct(ds: pydicom.Dataset) -> None:
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CT_IMAGE_STORAGE
    ds.Modality = "CT"


def _lateral(ds: pydicom.Dataset) -> None:
    ds.ViewPosition = "LL"


def _without_pixels(ds: pydicom.Dataset) -> None:
    del ds.PixelData


def _bomb(ds: pydicom.Dataset) -> None:
    ds.Rows = ds.Columns = 20_000  # the header alone: 400 million pixels are never allocated


def _truncated_pixels(ds: pydicom.Dataset) -> None:
    ds.PixelData = ds.PixelData[: len(ds.PixelData) // 4 * 2]


@pytest.mark.parametrize(
    ("spoil", "state", "code"),
    [
        (_ct, "skipped", "modality_not_reportable"),
        (_lateral, "skipped", "no_frontal_view"),
        (_without_pixels, "skipped", "no_pixel_data"),
        (_bomb, "skipped", "image_too_large"),
        (_truncated_pixels, "failed", "pixels_undecodable"),
    ],
)
def test_a_study_without_a_report_says_why_by_accession_and_harms_no_other(
    flow: EmbeddedFlow, phantom: Path, spoil: Any, state: str, code: str
) -> None:
    bad, good = Study(phantom, _run(), 1), Study(phantom, _run(), 2)
    _register(flow, good)
    image = bad.image()
    spoil(image)
    assert send(image, flow.dicom_port) == 0x0000
    assert send(good.image(), flow.dicom_port) == 0x0000
    told = _ends_as(flow, bad.uid, state)
    assert told["reason"]["code"] == code
    assert told["reason"]["text"].endswith(".")
    (listed,) = httpx.get(f"{flow.console_url}/api/studies", params={"accession": bad.accession}, timeout=120).json()[
        "items"
    ]
    assert (listed["study_instance_uid"], listed["state"]) == (bad.uid, state)
    wait_delivered(flow, good.uid)


def test_an_unknown_patient_parks_and_is_delivered_when_known(flow: EmbeddedFlow, phantom: Path) -> None:
    study = Study(phantom, _run(), 1)
    assert send(study.image(), flow.dicom_port) == 0x0000
    assert _ends_as(flow, study.uid, "parked")["reason"]["code"] == "patient_not_found"
    _register(flow, study)
    httpx.post(f"{flow.console_url}/v1/deliveries/{study.uid}/replay", timeout=120).raise_for_status()
    _ends_as(flow, study.uid, "delivered")
    assert len(reports_of(flow, study.patient_id)) == 1


@pytest.mark.parametrize("decision", ["release", "decline"])
def test_a_study_in_doubt_waits_for_a_person_who_decides_in_the_console(
    flow: EmbeddedFlow, phantom: Path, decision: str
) -> None:
    study = Study(phantom, _run(), 1)
    _register(flow, study)
    image = study.image()
    for keyword in ("ViewPosition", "SeriesDescription", "ProtocolName", "StudyDescription"):
        setattr(image, keyword, "")
    assert send(image, flow.dicom_port) == 0x0000
    assert _ends_as(flow, study.uid, "parked")["reason"]["code"] == "view_unknown"
    held = httpx.get(f"{flow.console_url}/v1/held", timeout=120).json()["items"]
    assert study.uid in [item["study_instance_uid"] for item in held]
    page = httpx.get(f"{flow.console_url}/studies/{study.uid}", timeout=120).text
    assert f'action="/studies/{study.uid}/{decision}"' in page
    answer = httpx.post(f"{flow.console_url}/studies/{study.uid}/{decision}", timeout=120)
    assert answer.status_code == 303, answer.text
    if decision == "release":
        _ends_as(flow, study.uid, "delivered")
        assert len(reports_of(flow, study.patient_id)) == 1
    else:
        assert _ends_as(flow, study.uid, "skipped")["reason"]["code"] == "declined_by_person"
        assert reports_of(flow, study.patient_id) == []


def test_an_image_unlike_any_phantom_is_held_with_a_plain_statement(flow: EmbeddedFlow, phantom: Path) -> None:
    study = Study(phantom, _run(), 1)
    _register(flow, study)
    image = study.image()
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 2**image.BitsStored, (image.Rows, image.Columns), dtype=np.uint16)
    image.PixelData = noise.astype(np.uint16 if image.BitsAllocated == 16 else np.uint8).tobytes()
    assert send(image, flow.dicom_port) == 0x0000
    told = _ends_as(flow, study.uid, "parked")
    assert told["reason"]["code"] == "out_of_domain"
    assert "out_of_domain" in told["report"]["flags"]
    assert told["report"]["notices"]
    assert reports_of(flow, study.patient_id) == []


def test_an_event_that_is_none_goes_to_the_dead_letters(flow: EmbeddedFlow, phantom: Path) -> None:
    from pipeline.bus import Message
    from pipeline.sql_bus import SqlBus

    bus = SqlBus(f"sqlite:///{flow.folder}/db/bus.sqlite3")
    producer = bus.producer()
    producer.publish([Message("imaging.report.generated.v1", "poison", b'{"specversion": "1.0"}')])
    producer.close()
    bus.close()

    def giving_up() -> set[str]:
        found = httpx.get(f"{flow.console_url}/api/dead-letters", timeout=120).json()["items"]
        return {letter["consumer"] for letter in found if letter["error_code"] == "not_cloudevents"}

    consumers = {"console", "dispatcher", "fhir_writer"}
    wait_until("a dead letter of each consumer", giving_up, done=lambda seen: seen == consumers)
    study = Study(phantom, _run(), 1)
    _register(flow, study)
    assert send(study.image(), flow.dicom_port) == 0x0000
    wait_delivered(flow, study.uid)


def test_one_port_answers_for_all(flow: EmbeddedFlow) -> None:
    # A service that does not answer within five seconds is left out once.
    everyone = {"dicom_listener", "dispatcher", "inference_worker", "fhir_writer", "console"}

    def told() -> tuple[str, set[str]]:
        metrics = httpx.get(f"{flow.console_url}/metrics", timeout=120).text
        ready = httpx.get(f"{flow.console_url}/readyz", timeout=120).json()
        return ready["status"], set(re.findall(r'service="(\w+)"', metrics))

    wait_until("health and metrics of every service", told, done=lambda seen: seen == ("ready", everyone))
    with httpx.Client(base_url=flow.console_url, timeout=120) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/").headers["content-type"].startswith("text/html")
        assert "/api/studies" in client.get("/api/openapi.json").json()["paths"]
        assert client.get("/fhir/metadata").json()["fhirVersion"].startswith("4.0")
        assert set(client.get("/v1/outstanding").json()) >= {
            "outstanding",
            "queued",
            "running",
            "oldest_age_s",
            "queues",
        }
        assert client.post("/v1/fetch", json={"accession_number": "A-17"}).status_code == 501  # no archive is set
        missing = client.get("/api/studies/1.2.3")
        assert missing.status_code == 404
        assert missing.headers["content-type"] == "application/problem+json"


def test_a_second_start_on_the_same_folder_refuses(flow: EmbeddedFlow) -> None:
    done = _serve(flow.folder)
    assert done.returncode == 2
    assert str(flow.process.pid) in done.stderr
    assert "is serving" in done.stderr


def _serve(folder: Path, *args: str, dicom_port: int = 0, http_port: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "standalone", "serve", "--data-dir", str(folder)]
    ports = ["--dicom-port", str(dicom_port or free_port()), "--http-port", str(http_port or free_port())]
    return subprocess.run([*command, *ports, *args], capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("which", ["dicom_port", "http_port"])
def test_a_port_in_use_is_named(which: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = _serve(tmp_path / "data", **{which: port})
    assert done.returncode == 2
    assert f"--{which.replace('_', '-')}" in done.stderr
    assert str(port) in done.stderr


def test_a_checkpoint_with_a_missing_tensor_is_refused_by_name(tmp_path: Path) -> None:
    import echo_model

    model = tmp_path / "model"
    shutil.copytree(echo_model.demo_checkpoint_path(), model)
    tensors = load_file(model / "model.safetensors")
    name = next(name for name in tensors if name.endswith("self_attn.q_proj.weight"))
    del tensors[name]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    done = _serve(tmp_path / "data", "--model", str(model))
    assert done.returncode == 1
    assert name in done.stderr
    assert "ECHO_MODEL" in done.stderr


def test_nothing_is_left_of_a_killed_supervisor_and_the_next_start_goes_on(tmp_path: Path, phantom: Path) -> None:
    flow = EmbeddedFlow(tmp_path / "data", env=PATIENT_KNOWN)
    try:
        flow.wait_ready()
        study = Study(phantom, _run(), 1)
        assert send(study.image(), flow.dicom_port) == 0x0000
        family = psutil.Process(flow.process.pid).children(recursive=True)
        assert len(family) >= 8
        flow.process.send_signal(signal.SIGKILL)
        flow.process.wait()
        flow.start()
        flow.wait_ready()

        def left() -> list[psutil.Process]:
            return [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]

        wait_until("the first processes gone", lambda: not left())
        wait_delivered(flow, study.uid)
        assert len(reports_of(flow, study.patient_id)) == 1
        flow.stop()
    finally:
        flow.process.kill()
        flow.process.wait()
    records = [json.loads(path.read_text()) for path in (tmp_path / "data" / "run").glob("*.pid.json")]
    assert records == []
