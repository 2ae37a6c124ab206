"""The servers that scripts/services.sh runs behave as the other tests rely on."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid
from pynetdicom import AE, evt

from servers import env, probe, validate_fhir


def libpq(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


@pytest.mark.needs("postgres")
def test_each_postgres_database_is_new_and_its_user_is_no_superuser(new_postgres_url: Callable[[], str]) -> None:
    first, second = new_postgres_url(), new_postgres_url()
    with psycopg.connect(libpq(first), autocommit=True) as connection:
        connection.execute("CREATE TABLE only_here (n integer)")
        assert connection.execute("SELECT current_setting('is_superuser'), current_setting('fsync')").fetchone() == (
            "off",
            "on",
        )
    with psycopg.connect(libpq(second)) as connection:
        assert connection.execute("SELECT to_regclass('only_here')").fetchone() == (None,)


@pytest.mark.needs("postgres")
def test_postgres_lets_nobody_else_in() -> None:
    parts = urllib.parse.urlsplit(libpq(env.postgres_url()))
    with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry|rejects connection"):
        psycopg.connect(f"postgresql://postgres@{parts.hostname}:{parts.port}/postgres").close()


def test_redis_database_is_empty_and_belongs_to_one_test(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as mine:
        assert mine.dbsize() == 0
        mine.set("key", "value")
        assert mine.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert mine.config_get("appendonly") == {"appendonly": "yes"}
    number = redis_url.rpartition("/")[2]
    with redis.Redis.from_url(f"{env.redis_url()}/0") as book:
        assert book.exists(f"lease:{number}")


def test_kafka_delivers_in_order(kafka_bootstrap: str, kafka_prefix: str) -> None:
    topic = f"{kafka_prefix}order"
    admin = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=kafka_bootstrap)
    for number in range(10):
        producer.send(topic, str(number).encode())
    producer.flush()
    producer.close()
    consumer = KafkaConsumer(
        topic, bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest", consumer_timeout_ms=60_000
    )
    seen: list[int] = []
    for record in consumer:
        seen.append(int(record.value))
        if len(seen) == 10:
            break
    consumer.close()
    assert seen == list(range(10))


def patient(unique: str) -> dict[str, Any]:
    return {"resourceType": "Patient", "identifier": [{"system": "urn:example:test", "value": unique}]}


def test_hapi_refuses_what_r4_forbids_and_keeps_versions_apart(hapi_url: str, unique: str) -> None:
    never_kept = httpx.Limits(
        max_keepalive_connections=0
    )  # the server may end an idle connection when it is used again
    with httpx.Client(base_url=hapi_url, timeout=120, limits=never_kept, trust_env=False) as http:
        assert http.post("/DiagnosticReport", json={"resourceType": "DiagnosticReport"}).status_code == 422
        unknown_element = patient(unique) | {"shoeSize": 43}
        assert http.post("/Patient", json=unknown_element).status_code in (400, 422)

        condition = {"If-None-Exist": f"identifier=urn:example:test|{unique}"}
        first = http.post("/Patient", json=patient(unique), headers=condition)
        again = http.post("/Patient", json=patient(unique), headers=condition)
        assert (first.status_code, again.status_code) == (201, 200)
        stored = again.json()
        assert stored["id"] == first.json()["id"]

        url, stale = f"/Patient/{stored['id']}", {"If-Match": 'W/"1"'}
        assert http.put(url, json=stored | {"gender": "other"}, headers=stale).status_code == 200
        assert http.put(url, json=stored | {"gender": "male"}, headers=stale).status_code == 409


@pytest.mark.needs("validator")
@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_validator_finds_what_is_wrong_and_passes_what_is_right(tmp_path: Path, unique: str) -> None:
    contents = {
        "right.json": json.dumps(patient(unique)),
        "wrong.json": json.dumps({"resourceType": "DiagnosticReport", "status": "preliminary"}),
        "broken.json": "{",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    found = validate_fhir.validate(tmp_path / name for name in contents)
    in_error = {finding.file.name for finding in found if finding.is_error}
    assert in_error == {"wrong.json", "broken.json"}
    assert any("DiagnosticReport.code" in finding.message for finding in found)


@pytest.fixture
def receiver(orthanc: Any, free_port: Callable[[], int], unique: str) -> Iterator[list[tuple[str, str]]]:
    """A DICOM receiver to which the archive forwards: (SOP instance UID, transfer syntax) of what arrives."""
    arrived: list[tuple[str, str]] = []

    def store(event: evt.Event) -> int:
        arrived.append((str(event.dataset.SOPInstanceUID), str(event.context.transfer_syntax)))
        return 0x0000

    entity = AE(ae_title="RECEIVER")
    entity.add_supported_context(CTImageStorage, [ExplicitVRLittleEndian, JPEG2000Lossless])
    port = free_port()
    entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    modality, here = f"{orthanc.url}/modalities/auto-{unique}", {"AET": "RECEIVER", "Host": "127.0.0.1", "Port": port}
    try:
        httpx.put(modality, json=here, timeout=120, trust_env=False).raise_for_status()
        yield arrived
    finally:
        entity.shutdown()
        httpx.delete(modality, timeout=120, trust_env=False).raise_for_status()


def instance(transfer_syntax: UID, unique: str) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    dataset.PatientID = unique
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    return dataset


@pytest.mark.parametrize("transfer_syntax", [ExplicitVRLittleEndian, JPEG2000Lossless])
def test_orthanc_stores_and_forwards_as_received(
    orthanc: Any, receiver: list[tuple[str, str]], unique: str, transfer_syntax: UID
) -> None:
    dataset = instance(transfer_syntax, unique)
    sender = AE(ae_title="SENDER")
    sender.acse_timeout = sender.dimse_timeout = sender.network_timeout = 120
    sender.add_requested_context(CTImageStorage, transfer_syntax)
    association = sender.associate(orthanc.host, orthanc.dicom_port, ae_title=orthanc.aet)
    assert association.is_established
    status = association.send_c_store(dataset)
    association.release()
    assert status.Status == 0x0000
    end = time.monotonic() + 120
    # The archive forwards what other test runs send to it, too.
    while not (mine := [entry for entry in receiver if entry[0] == dataset.SOPInstanceUID]):
        assert time.monotonic() < end, f"of what was sent nothing arrived; arrived is {receiver}"
        time.sleep(0.05)
    assert mine == [(dataset.SOPInstanceUID, transfer_syntax)]


def test_dcmtk_reaches_orthanc(orthanc: Any, dcmtk: Callable[[str], str]) -> None:
    subprocess.run(
        [dcmtk("echoscu"), "-aec", orthanc.aet, orthanc.host, str(orthanc.dicom_port)], check=True, timeout=240
    )


@pytest.mark.needs("chromium")
def test_chromium_starts(chromium: str) -> None:
    version = subprocess.run([chromium, "--version"], check=True, capture_output=True, text=True, timeout=240).stdout
    assert "Chrom" in version


@pytest.mark.parametrize("name", env.SERVERS)
def test_probe_says_what_is_wrong(name: str, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    for variable, value in {
        "ECHO_TEST_POSTGRES_URL": f"postgresql+psycopg://echo@127.0.0.1:{port}/echo",
        "ECHO_TEST_REDIS_URL": f"redis://127.0.0.1:{port}",
        "ECHO_TEST_KAFKA_BOOTSTRAP": f"127.0.0.1:{port}",
        "ECHO_TEST_HAPI_URL": f"http://127.0.0.1:{port}/fhir",
        "ECHO_TEST_ORTHANC_URL": f"http://127.0.0.1:{port}",
    }.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(probe.NotReady, match="refused"):
        probe.check(name)
