"""The FHIR server is down, slow, refusing, or loses its answer: nothing is lost, nothing is written twice."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from fhir_writer.domain import codes, resources
from fhir_writer.domain.schedule import CircuitBreaker
from integration.fhir_writer.fault_proxy import Fault, FaultProxy
from pipeline.bus import Message
from pipeline.buses import make_bus
from pipeline.events import ALL_TOPICS, Event
from pipeline.settings import BusSettings
from unit.fhir_writer.samples import DEFAULT_FINDINGS, completed, generated, new_uid, patient

OUTCOME = json.dumps(
    {
        "resourceType": "OperationOutcome",
        "issue": [{"severity": "error", "code": "invalid", "diagnostics": "No such code."}],
    }
).encode()

FHIR_JSON = {"Content-Type": "application/fhir+json"}


def results(events: list[dict]) -> list[str]:
    return [event.get("result") or event["reason"]["code"] for event in events]


def test_a_server_that_is_down_gets_the_report_when_it_is_back(sekmet, known_patient, make_writer, free_port, mrn):
    port = free_port()
    writer, uid = make_writer(f"http://127.0.0.1:{port}/fhir"), new_uid()
    writer.feed(completed(uid, mrn=mrn), generated(uid))
    for _ in range(5):
        assert writer.run_due() == 1
        writer.advance(200)
    (event,) = writer.events()  # one for the outage, not one for each attempt
    assert (event["reason"]["code"], event["person_must_act"]) == ("ehr_unavailable", False)
    assert event["next_attempt_at"] > "2026-01-05T08:00:31"
    assert (writer.row(uid)["state"], writer.row(uid)["attempts"]) == ("pending", 5)
    back = FaultProxy(sekmet.base_url, port)
    try:
        writer.run_due()
    finally:
        back.close()
    assert results(writer.events()) == ["created"]


@pytest.mark.parametrize("forward", [True, False], ids=["after the server committed", "before it reached the server"])
def test_a_lost_answer_leaves_exactly_one_report(ehr, proxy, make_writer, mrn, registered, forward):
    writer, uid = make_writer(proxy.url), new_uid()
    proxy.transactions.append(Fault(forward=forward))
    writer.feed(completed(uid, mrn=mrn), generated(uid))
    writer.run_due()
    assert len(ehr.reports(uid)) == (1 if forward else 0)
    writer.advance(5)
    writer.run_due()
    (report,) = ehr.reports(uid)
    assert results(writer.events()) == ["ehr_unavailable", "unchanged" if forward else "created"]
    assert len(ehr.observations(uid)) == len(DEFAULT_FINDINGS)
    assert len(ehr.provenances(report)) == 1
    assert [method for method, _, _ in proxy.seen].count("POST") == (1 if forward else 2)


@pytest.fixture
def sekmet_proxy(sekmet):
    between = FaultProxy(sekmet.base_url)
    yield between
    between.close()


@pytest.fixture
def known_patient(sekmet, mrn):
    resource = patient(mrn, codes.DEFAULT_PATIENT_SYSTEM)
    answer = httpx.post(f"{sekmet.base_url}/Patient", json=resource, timeout=120, trust_env=False)
    assert answer.status_code == 201, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (500, "ehr_error"),
        (502, "ehr_error"),
        (404, "ehr_not_found"),
        (302, "ehr_error"),
    ],
)
def test_errors_of_the_server_are_tried_again(sekmet_proxy, known_patient, make_writer, mrn, status, code):
    writer, uid = make_writer(sekmet_proxy.url), new_uid()
    sekmet_proxy.transactions.extend([Fault(status=status), Fault(status=status)])
    writer.feed(completed(uid, mrn=mrn), generated(uid))
    for _ in range(3):
        assert writer.run_due() == 1
        writer.advance(10)
    first, last = writer.events()
    assert (first["reason"]["code"], first["http_status"], first["person_must_act"]) == (code, status, False)
    assert last["result"] == "created"


@pytest.mark.parametrize("status", [409, 412])
def test_a_conflict_on_reading_is_tried_again(sekmet_proxy, known_patient, make_writer, mrn, status):
    writer, uid = make_writer(sekmet_proxy.url), new_uid()
    sekmet_proxy.reads.append(Fault(status=status))
    writer.feed(completed(uid, mrn=mrn), generated(uid))
    for _ in range(2):
        writer.run_due()
        writer.advance(10)
    assert results(writer.events()) == ["ehr_error", "created"]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (422, "ehr_refused"),
        (400, "ehr_refused"),
        (401, "ehr_unauthorized"),
        (403, "ehr_forbidden"),
    ],
)
def test_a_refused_report_is_parked_with_the_reason(sekmet_proxy, known_patient, make_writer, mrn, status, code):
    writer, uid, other = make_writer(sekmet_proxy.url), new_uid(), new_uid()
    sekmet_proxy.transactions.append(Fault(status=status, headers=FHIR_JSON, body=OUTCOME))
    writer.feed(completed(uid, mrn=mrn), generated(uid))
    writer.run_due()
    (event,) = writer.events()
    assert (event["reason"]["code"], event["http_status"], event["person_must_act"]) == (code, status, True)
    assert event["operation_outcome"] == "error/invalid: No such code."
    writer.advance(100_000)
    assert writer.run_due() == 0
    writer.feed(completed(other, mrn=mrn), generated(other))
    writer.run_due()
    assert results(writer.events()) == ["created"]  # the next study is unharmed
    assert writer.deliveries.replay(writer.clock.now(), reason=code) == 1
    writer.run_due()
    assert results(writer.events()) == ["created"]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(sekmet_proxy, known_patient, make_writer, mrn, status):
    writer, uid = make_writer(sekmet_proxy.url), new_uid()
    sekmet_proxy.transactions.append(Fault(status=status, headers={"Retry-After": "77"}))
    writer.feed(completed(uid, mrn=mrn), generated(uid))
    writer.run_due()
    writer.advance(76)
    assert writer.run_due() == 0
    writer.advance(3)
    assert writer.run_due() == 1
    assert results(writer.events()) == ["ehr_busy", "created"]


def test_a_slow_server_is_not_waited_for_without_end(sekmet_proxy, known_patient, make_writer, mrn):
    writer, uid, waited = make_writer(sekmet_proxy.url, timeout_s=0.3), new_uid(), threading.Event()
    sekmet_proxy.reads.append(Fault(meanwhile=lambda: waited.wait(240)))
    writer.feed(completed(uid, mrn=mrn), generated(uid))
    writer.run_due()
    waited.set()
    assert results(writer.events()) == ["ehr_timeout"]


def test_an_open_breaker_spares_the_server_and_tells_about_every_study(sekmet_proxy, known_patient, make_writer, mrn):
    writer = make_writer(sekmet_proxy.url, breaker=CircuitBreaker(failures=2, open_s=30))
    uids = [new_uid() for _ in range(6)]
    sekmet_proxy.reads.extend([Fault(status=500)] * 2)
    for uid in uids:
        writer.feed(completed(uid, mrn=mrn), generated(uid))
    writer.run_due()
    assert len(sekmet_proxy.seen) == 2  # the other four were not even tried
    told = writer.events()
    assert sorted(event["study_instance_uid"] for event in told) == sorted(uids)
    writer.advance(40)
    writer.run_due()  # one probe goes through, ends the outage, and wakes the others
    writer.run_due()
    writer.run_due()
    assert results(writer.events()) == ["created"] * 6


@pytest.mark.parametrize("first", [1, 2], ids=["that creates", "that updates"])
def test_a_stalled_process_does_not_bring_back_an_older_version(
    sekmet, known_patient, make_writer, mrn, tmp_path, monkeypatch, first
):
    database_url, uid = f"sqlite:///{tmp_path}/both.sqlite3", new_uid()
    stalled = make_writer(sekmet.base_url, database_url=database_url)
    other = make_writer(sekmet.base_url, database_url=database_url, clock=stalled.clock)
    for version in range(1, first + 1):
        stalled.feed(completed(uid, version, mrn=mrn), generated(uid, version, impression=f"Draft {version}."))
        if version < first:
            stalled.run_due()
    transaction = stalled.fhir.transaction

    def late(bundle):
        monkeypatch.undo()
        stalled.advance(16)  # its lease runs out, and another process delivers the newer version meanwhile
        other.feed(completed(uid, 9, mrn=mrn), generated(uid, 9, impression="The newest draft."))
        assert other.run_due() == 1
        return transaction(bundle)

    monkeypatch.setattr(stalled.fhir, "transaction", late)
    stalled.run_due()
    value = resources.report_identifier(uid)
    answer = httpx.get(
        f"{sekmet.base_url}/DiagnosticReport",
        params={"identifier": f"{codes.REPORT_SYSTEM}|{value}"},
        timeout=120,
        trust_env=False,
    )
    (entry,) = answer.json()["entry"]
    assert entry["resource"]["conclusion"] == "The newest draft."
    assert (stalled.row(uid)["state"], stalled.row(uid)["delivered_version"]) == ("delivered", 9)
    assert [event["study_version"] for event in stalled.events()][-1] == 9


def test_no_identifier_reaches_the_log(sekmet_proxy, known_patient, make_writer, mrn, caplog):
    caplog.set_level(logging.INFO)
    writer, uid = make_writer(sekmet_proxy.url), new_uid()
    body = OUTCOME.replace(b"No such code.", f"about {mrn} {uid}".encode())
    sekmet_proxy.transactions.append(Fault(status=422, headers=FHIR_JSON, body=body))
    writer.feed(completed(uid, mrn=mrn, accession="ACC-SECRET"), generated(uid))
    writer.run_due()
    ours = [record for record in caplog.records if record.name.startswith("fhir_writer")]
    lines = [f"{record.getMessage()} {vars(record)}" for record in ours]
    assert lines
    assert not [line for line in lines if uid in line or mrn in line or "ACC-SECRET" in line]


class Process:
    """The real service, `python -m fhir_writer`, on an embedded bus."""

    def __init__(self, folder: Path, fhir_url: str) -> None:
        self.folder = folder
        self.env = {
            **os.environ,
            "ECHO_DATABASE_URL": f"sqlite:///{folder}/writer.sqlite3",
            "ECHO_BUS_URL": f"sqlite:///{folder}/bus.sqlite3",
            "ECHO_FHIR_BASE_URL": fhir_url,
            "ECHO_HTTP_HOST": "127.0.0.1",
            "ECHO_HTTP_PORT": "0",
            "ECHO_SITE_TIMEZONE": "Europe/Berlin",
            "ECHO_BUS_SESSION_TIMEOUT_S": "2",
            "PYTHONFAULTHANDLER": "1",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "writer.log").open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "fhir_writer"], env=self.env, stderr=log)

    def kill(self, signum: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(signum)
        return self.process.wait(timeout=120)


@pytest.mark.timeout(900)
def test_sigkill_between_the_post_and_its_answer_leaves_one_report(ehr, proxy, mrn, registered, tmp_path):
    uid = new_uid()
    committed, killed = threading.Event(), threading.Event()
    proxy.transactions.append(Fault(forward=True, meanwhile=lambda: (committed.set(), killed.wait(600))[0]))
    service = Process(tmp_path, proxy.url)
    bus = make_bus(BusSettings(bus_url=f"sqlite:///{tmp_path}/bus.sqlite3"))
    bus.ensure_topics(ALL_TOPICS)
    producer = bus.producer()
    events = [completed(uid, mrn=mrn), generated(uid)]
    producer.publish([Message(event.topic, event.key, event.to_bytes()) for event in events])
    consumer = bus.consumer("test", ["imaging.report.delivered.v1"])
    try:
        service.start()
        assert committed.wait(240), (tmp_path / "writer.log").read_text()
        service.kill()
        killed.set()
        service.start()
        delivered = []
        deadline = time.monotonic() + 240
        while not delivered and time.monotonic() < deadline:
            delivered = [Event.from_bytes(record.value) for record in consumer.poll(0.5)]
        log = (tmp_path / "writer.log").read_text()
        assert [event.data["result"] for event in delivered] == ["unchanged"], log
        (report,) = ehr.reports(uid)
        assert len(ehr.observations(uid)) == len(DEFAULT_FINDINGS)
        assert len(ehr.provenances(report)) == 1
        assert service.kill(signal.SIGTERM) == 0, (tmp_path / "writer.log").read_text()
        assert uid not in (tmp_path / "writer.log").read_text()
        assert mrn not in (tmp_path / "writer.log").read_text()
    finally:
        if service.process is not None and service.process.poll() is None:
            service.kill()
        consumer.close()
        producer.close()
        bus.close()
