"""Receiving in several processes: what is shared between them, and what one that dies or hangs does to the others."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.sop_class import StorageCommitmentPushModel

from dicom_listener.domain.part10 import part10_head
from integration.dicom_listener.certificates import client, new_papers
from integration.dicom_listener.peers import (
    CT,
    DX,
    EXPLICIT,
    Sender,
    data_set_bytes,
    encoded,
    half_a_message,
    image,
    new_uid,
    wait_for,
)
from integration.dicom_listener.process import Process
from integration.dicom_listener.stow_peers import CONTENT_TYPE, body_of, part10, reasons
from integration.dicom_listener.test_commitment import Requester


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    running = Process(tmp_path)
    yield running
    for pid in receiving(running):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    running.kill()


def receiving(process: Process) -> list[int]:
    """Process ids of those that receive."""
    if process.child is None or process.child.poll() is not None:
        return []
    try:
        return [child.pid for child in psutil.Process(process.child.pid).children()]
    except psutil.NoSuchProcess:  # in this very moment
        return []


def is_gone(pid: int) -> bool:
    """Ended; whether somebody has asked for its exit status or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def lowest_free_descriptor(pid: int) -> int:
    taken = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in itertools.count() if number not in taken)


def get(process: Process, path: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{process.fields['http_port']}{path}", timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_connections_go_to_all_of_them(process: Process) -> None:
    process.start(receiving_processes=3)
    pids = receiving(process)
    before = [psutil.Process(pid).num_fds() for pid in pids]
    senders = [Sender(process.port) for _ in range(6)]
    assert [psutil.Process(pid).num_fds() - count for pid, count in zip(pids, before, strict=True)] == [2, 2, 2]
    images = [image() for _ in senders]
    assert [sender.send(ds) for sender, ds in zip(senders, images, strict=True)] == [0] * 6
    for sender in senders:
        sender.assoc.release()
    assert process.rows("select count(*) from instances") == [(6,)]
    expected = (
        'echo_dicom_associations_total{outcome="released"} 6.0',
        'echo_dicom_objects_total{status="0000"} 6.0',
        "echo_dicom_store_seconds_count 6.0",
    )
    wait_for(lambda: all(line in get(process, "/metrics")[1] for line in expected))
    line = r'^echo_dicom_receiving_process_(\w+)\{process="receiving-(\d)"\} (\S+)$'
    told = re.findall(line, get(process, "/metrics")[1], re.MULTILINE)
    figures = {(name, int(number)): float(value) for name, number, value in told}
    for number, pid in enumerate(sorted(pids)):
        assert figures["start_time_seconds", number] == pytest.approx(psutil.Process(pid).create_time(), abs=1)
        assert figures["resident_memory_bytes", number] > 10 * 2**20
        assert figures["cpu_seconds_total", number] > 0
        assert figures["open_fds", number] > 2
    assert process.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("count", [1, 2])
def test_storage_classes_that_are_not_kept(process: Process, count: int) -> None:
    process.start(receiving_processes=count, storage_classes=json.dumps([DX]), stow_port=0)
    film, slice_ = image(), image(SOPClassUID=CT)
    with Sender(process.port, [(DX, [EXPLICIT]), (CT, [EXPLICIT])]) as sender:
        assert sender.store(encoded(film), DX, film.SOPInstanceUID) == 0
        assert sender.store(encoded(slice_), CT, slice_.SOPInstanceUID) == 0x0122
    url = f"http://127.0.0.1:{process.fields['stow_port']}/dicom-web/studies"
    answer = httpx.post(url, content=body_of(part10(slice_)), headers={"content-type": CONTENT_TYPE}, timeout=60)
    assert (answer.status_code, reasons(answer)) == (409, [0x0122])
    assert process.rows("select sop_instance_uid from instances") == [(str(film.SOPInstanceUID),)]
    assert process.end(signal.SIGTERM) == 0
    told = "select reason, sum(count) from refusals group by reason"
    assert dict(process.rows(told)) == {"sop_class_not_kept": 2}


@pytest.mark.parametrize("count", [1, 2])
def test_an_ipv6_port_takes_ipv4_too(process: Process, count: int) -> None:
    process.start(receiving_processes=count, dicom_host="::", allowed_peers='[{"networks": ["127.0.0.0/8"]}]')
    with Sender(process.port) as sender:
        assert sender.send(image()) == 0


def test_each_of_them_keeps_every_transfer_syntax_as_it_came(process: Process) -> None:
    process.start(receiving_processes=2)
    sent: dict[tuple[str, str], bytes] = {}
    halves = ALL_TRANSFER_SYNTAXES[::2], ALL_TRANSFER_SYNTAXES[1::2]
    senders = [Sender(process.port, [(DX, [syntax]) for syntax in half]) for half in halves]
    for sender, half in zip(senders, halves, strict=True):
        for syntax in half:
            ds = image(size=150)
            data = sent[str(ds.SOPInstanceUID), syntax] = encoded(ds, syntax)
            assert sender.store(data, DX, ds.SOPInstanceUID, syntax) == 0
    rows = process.rows("select sop_instance_uid, transfer_syntax_uid, object_key from instances")
    assert {(uid, syntax): data_set_bytes(process.objects / key) for uid, syntax, key in rows} == sent
    assert process.staged() == []


@pytest.mark.parametrize("takes_associations", [False, True])
def test_sigterm_does_not_wait_for_a_sender_that_says_nothing(process: Process, takes_associations: bool) -> None:
    asked = threading.Event()
    go = threading.Event()

    def hold(_event: Any) -> tuple[int, None]:
        asked.set()
        go.wait()
        return 0, None

    with socket.create_server(("127.0.0.1", 0)) as silent, contextlib.ExitStack() as end:
        port = silent.getsockname()[1]
        if takes_associations:
            ae = AE(ae_title="SENDER")
            ae.add_supported_context(StorageCommitmentPushModel, scp_role=True, scu_role=True)
            server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, hold)])
            end.callback(server.shutdown)
            end.callback(go.set)
            port = server.server_address[1]
        process.start(
            known_peers=json.dumps({"SENDER": {"host": "127.0.0.1", "port": port}}), request_timeout_seconds=300
        )
        with Sender(process.port) as sender:
            assert sender.send(ds := image()) == 0
        requester = Requester()
        end.callback(requester.server.shutdown)
        assoc = requester.associate(process.port)
        assert Requester.ask(assoc, [(DX, ds.SOPInstanceUID)]) == 0
        assoc.release()
        if takes_associations:
            assert asked.wait(120)
        else:
            silent.settimeout(120)
            end.enter_context(silent.accept()[0])
        assert process.end(signal.SIGTERM) == 0  # a loop that does not end would have made it 1
        assert process.rows("select outcome, attempts from commitments") == [(None, 1)]


@pytest.mark.needs("dcmtk")
def test_mutual_tls(process: Process, tmp_path: Path, dcmtk: Callable[[str], str]) -> None:
    papers = new_papers(tmp_path)
    (certificate, key), (own_certificate, own_key) = papers.server, papers.sender
    process.start(
        receiving_processes=2,
        tls_certificate_file=certificate,
        tls_key_file=key,
        tls_client_ca_file=papers.authority,
    )
    by_pynetdicom, by_dcmtk, path = image(size=600), image(size=600), tmp_path / "film.dcm"
    path.write_bytes(part10_head(DX, by_dcmtk.SOPInstanceUID, EXPLICIT) + encoded(by_dcmtk))
    own = ["+tls", str(own_key), str(own_certificate), "+cf", str(papers.authority)]
    command = [dcmtk("storescu"), *own, "-aec", "ECHO", "127.0.0.1", str(process.port), str(path)]
    with Sender(process.port, tls=client(papers, papers.sender)) as sender:  # in one process, dcmtk in the other
        assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
        assert sender.send(by_pynetdicom) == 0
    rows = process.rows("select sop_instance_uid, object_key from instances")
    assert {uid: data_set_bytes(process.objects / key) for uid, key in rows} == {
        ds.SOPInstanceUID: encoded(ds) for ds in (by_pynetdicom, by_dcmtk)
    }
    for unknown in (papers.stranger, None):
        assert not Sender(process.port, tls=client(papers, unknown)).assoc.is_established
    refused = "select sum(count) from refusals where reason = 'tls_handshake_failed'"
    wait_for(lambda: process.rows(refused) == [(2,)])


def test_every_release_is_heard(process: Process) -> None:
    """It is told by one thread of an association, and the end of the connection by the other, in any order."""
    process.start(receiving_processes=2, quiet_seconds=600, release_seconds=0.1)
    for _ in range(25):
        with Sender(process.port) as sender:
            assert sender.send(image()) == 0
    wait_for(
        lambda: (
            process.rows("select state, reason, count(*) from studies group by 1, 2")
            == [("complete", "association_released", 25)]
        )
    )


def test_limits_count_over_all_of_them(process: Process) -> None:
    process.start(receiving_processes=2, maximum_associations=5, maximum_associations_per_peer=3, drain_seconds=0.5)
    senders = [Sender(process.port) for _ in range(3)]
    assert all(sender.assoc.is_established for sender in senders)
    assert Sender(process.port).rejected_for_now()
    senders[0].assoc.release()
    wait_for(lambda: Sender(process.port).assoc.is_established)
    senders[1].assoc.abort()
    wait_for(lambda: Sender(process.port).assoc.is_established)
    wait_for(lambda: process.rows("select 1 from refusals where reason = 'too_many_associations_of_peer' limit 1"))
    assert process.end(signal.SIGTERM) == 0


def test_one_without_descriptors_turns_away_and_goes_on_afterwards(process: Process) -> None:
    process.start(receiving_processes=2)
    pids = receiving(process)
    limits = [resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids]
    for pid, (_, hard) in zip(pids, limits, strict=True):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free_descriptor(pid), hard))
    assert not any(Sender(process.port).assoc.is_established for _ in range(4))
    counted = 'echo_dicom_refusals_total{reason="too_many_connections",scope="connection"} 4.0'
    wait_for(lambda: counted in get(process, "/metrics")[1])
    for pid, limit in zip(pids, limits, strict=True):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
    senders = [Sender(process.port) for _ in range(4)]
    assert [sender.send(image()) for sender in senders] == [0] * 4
    assert process.end(signal.SIGTERM) == 0


def test_a_study_waits_for_an_association_of_another_process(process: Process) -> None:
    process.start(receiving_processes=2, release_seconds=0.2)
    study = new_uid()
    first, second = Sender(process.port), Sender(process.port)
    assert first.send(image(study)) == second.send(image(study)) == 0
    first.assoc.release()
    with Sender(process.port) as other:  # a study of its own closes meanwhile, so the first one would have, too
        done = image()
        assert other.send(done) == 0
    wait_for(lambda: process.rows("select state from studies where instance_count = 1") == [("complete",)])
    assert process.rows("select state from studies where instance_count = 2") == [("open",)]
    second.assoc.release()
    wait_for(lambda: process.rows("select distinct state from studies") == [("complete",)])


def test_the_result_of_a_storage_commitment_comes_on_the_association_that_asked(process: Process) -> None:
    process.start(receiving_processes=2)
    requester = Requester()
    try:
        ds = image()
        with Sender(process.port) as sender:
            assert sender.send(ds) == 0
        assoc = requester.associate(process.port)
        transaction = new_uid()
        assert Requester.ask(assoc, [(DX, ds.SOPInstanceUID)], transaction) == 0
        wait_for(lambda: requester.results)
        ((event_type, information),) = requester.results
        assert (event_type, information.TransactionUID) == (1, transaction)
        assoc.release()
    finally:
        requester.server.shutdown()
    assert process.end(signal.SIGTERM) == 0


def test_all_of_them_reject_until_the_last_one_is_drained(process: Process) -> None:
    process.start(receiving_processes=3, drain_seconds=60)
    assert process.child is not None
    with Sender(process.port) as sender:
        assert sender.send(image()) == 0
        process.child.send_signal(signal.SIGTERM)
        wait_for(lambda: all(Sender.is_rejected(process.port) for _ in range(6)))  # they are told one by one
        time.sleep(0.5)  # the two others have nothing to wait for
        late = [Sender(process.port) for _ in range(6)]
        assert all(each.rejected_for_now() for each in late)
        assert sender.send(image()) == 0
    assert process.ended() == 0
    assert process.rows("select count(*) from instances") == [(2,)]


def test_one_that_is_killed_ends_the_listener_and_loses_nothing(process: Process) -> None:
    process.start(receiving_processes=2, drain_seconds=0.5)
    acknowledged = image()
    senders = [Sender(process.port) for _ in range(2)]
    assert senders[0].send(acknowledged) == 0
    half_a_message(senders[1], encoded(image(size=512)), new_uid())
    wait_for(process.staged)
    assert process.child is not None
    victim, other = receiving(process)
    os.kill(victim, signal.SIGKILL)
    assert process.ended() == 1
    wait_for(lambda: is_gone(other))
    assert '"message": "a receiving process has ended"' in process.log.read_text()
    process.start(receiving_processes=2)
    assert process.staged() == []
    uid = str(acknowledged.SOPInstanceUID)
    assert process.rows("select sop_instance_uid from instances") == [(uid,)]
    with Sender(process.port) as again:
        assert again.send(acknowledged) == 0
    wait_for(lambda: process.rows("select state, version from studies") == [("complete", 1)])
    assert process.end(signal.SIGTERM) == 0


def test_they_die_with_the_listener(process: Process) -> None:
    process.start(receiving_processes=2)
    sender = Sender(process.port)
    pids = receiving(process)
    process.end(signal.SIGKILL)
    for pid in pids:
        wait_for(lambda pid=pid: is_gone(pid))  # type: ignore[misc]  # a default binds the loop's variable
    wait_for(lambda: not sender.assoc.is_established)


def test_one_that_hangs_is_told_by_readiness_and_does_not_hold_up_the_other(process: Process) -> None:
    process.start(receiving_processes=2, drain_seconds=0.5)
    victim, _ = receiving(process)
    os.kill(victim, signal.SIGSTOP)
    status, answer = get(process, "/readyz")
    assert status == 503
    assert json.loads(answer)["checks"]["dicom_port"] != "ok"
    os.kill(victim, signal.SIGCONT)
    wait_for(lambda: get(process, "/readyz")[0] == 200)
    senders = [Sender(process.port) for _ in range(2)]  # one in each
    os.kill(victim, signal.SIGSTOP)
    statuses: list[int | None] = []
    sending = [threading.Thread(target=lambda s=sender: statuses.append(s.send(image()))) for sender in senders]
    for thread in sending:
        thread.start()
    wait_for(lambda: statuses)
    assert statuses == [0]
    assert process.end(signal.SIGTERM) == 0
    for thread in sending:
        thread.join(120)
    assert statuses == [0, None]
    assert '"message": "a receiving process did not drain"' in process.log.read_text()
    wait_for(lambda: is_gone(victim))


@pytest.mark.slow
def test_one_that_hangs_for_ever_is_killed(process: Process) -> None:
    process.start(receiving_processes=2)
    victim, _ = receiving(process)
    os.kill(victim, signal.SIGSTOP)
    assert process.child is not None
    assert process.ended(240) == 1
    assert is_gone(victim)
    assert '"message": "a receiving process hangs and is killed"' in process.log.read_text()
