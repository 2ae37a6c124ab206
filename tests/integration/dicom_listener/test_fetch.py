"""Studies fetched from real archives: which, whole or not, and what happens when the archive does not play along."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom.dataset import Dataset

from dicom_listener.adapters.tables import instances
from dicom_listener.handlers.fetch import Fetch, Wish
from integration.dicom_listener.certificates import client, new_papers, server
from integration.dicom_listener.pacs import (
    Fetching,
    Orthanc,
    archive_of,
    dimse_archive,
    fetching,
    orthanc,
    pacs,
)
from integration.dicom_listener.peers import (
    Listener,
    encoded,
    image,
    kept_port,
    listening,
    new_uid,
    wait_for,
    wait_until_equal,
)
from integration.dicom_listener.process import Process
from integration.dicom_listener.stow_peers import stow_door
from pipeline.events import STUDY_COMPLETED

# pynetdicom drops the socket of a connection that was refused without closing it.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "objects") as running:
        yield running


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    running = Process(tmp_path)
    yield running
    running.kill()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


def film(patient: str, date: str, description: str = "", **more: Any) -> Dataset:
    study = image(
        PatientID=patient, StudyDate=date, StudyTime="101500", StudyDescription=description, StudyID="", **more
    )
    study.PatientBirthDate, study.PatientSex, study.ReferringPhysicianName = "", "", ""
    study.SeriesNumber = study.InstanceNumber = "1"
    return study


def again(ds: Dataset) -> Dataset:
    """Another image of the same study, in a series of its own."""
    return film(ds.PatientID, ds.StudyDate, study=ds.StudyInstanceUID, AccessionNumber=ds.AccessionNumber)


def ask(work: Fetching, study: str | None = None, accession: str | None = None, priors: int = 0) -> str:
    return work.fetches.ask(Wish(study, accession, priors), work.clock.now())[0].id


def of(work: Fetching, id_: str) -> Fetch:
    fetch = work.fetches.get(id_)
    assert fetch is not None
    return fetch


def state(work: Fetching, id_: str) -> tuple[str, str | None]:
    fetch = of(work, id_)
    return fetch.state, fetch.problem[0] if fetch.problem else None


@pytest.mark.needs("orthanc")
@pytest.mark.parametrize("kind", ["dimse", "web"])
def test_a_study_and_its_priors_from_orthanc(listener: Listener, archive: Orthanc, kind: str) -> None:
    patient, accession = f"P{new_uid()[-10:]}", f"A{new_uid()[-10:]}"
    current = film(patient, "20260301", "Chest", AccessionNumber=accession)
    second = again(current)
    newest = film(patient, "20260228", "", BodyPartExamined="")
    older = film(patient, "20240101", "Thorax pa")
    oldest = film(patient, "20200101", "Chest pa")
    hand = film(patient, "20250101", "Hand", BodyPartExamined="HAND")
    newer, stranger = film(patient, "20260401", "Chest"), film(f"{patient}X", "20240101", "Chest")
    archive.add(current, second, newest, older, oldest, hand, newer, stranger)
    archive.knows(listener)
    with archive_of(kind, archive, listener) as source:
        work = fetching(listener, source)
        id_ = ask(work, accession=accession, priors=2)
        assert work.step()
    assert state(work, id_) == ("done", None)
    shares = [(share.study_instance_uid, share.role, share.expected, share.held) for share in of(work, id_).shares]
    assert shares == [
        (current.StudyInstanceUID, "study", 2, 2),
        (newest.StudyInstanceUID, "prior", 1, 1),
        (older.StudyInstanceUID, "prior", 1, 1),
    ]
    wanted = {ds.SOPInstanceUID: ds for ds in (current, second, newest, older)}
    assert {row.sop_instance_uid for row in listener.rows(instances)} == set(wanted)
    if kind == "web":  # Orthanc writes data sets anew when it sends them by DIMSE
        for uid, ds in wanted.items():
            assert listener.data_set(listener.instance(uid).object_key) == encoded(ds)
    listener.step_until(3)
    events = {e.key: e.data.get("fetched_as_prior") for e in listener.events() if e.type == STUDY_COMPLETED}
    assert events == {
        current.StudyInstanceUID: None,
        newest.StudyInstanceUID: True,
        older.StudyInstanceUID: True,
    }


@pytest.mark.needs("orthanc")
@pytest.mark.parametrize("kind", ["dimse", "web"])
def test_what_orthanc_does_not_know(listener: Listener, archive: Orthanc, kind: str) -> None:
    with archive_of(kind, archive, listener) as source:
        work = fetching(listener, source)
        id_ = ask(work, study=new_uid())
        assert work.step()
    assert state(work, id_) == ("failed", "not_found")
    assert not work.step()


@pytest.mark.needs("orthanc")
def test_orthanc_sends_by_stow(listener: Listener, archive: Orthanc) -> None:
    study = new_uid()
    images = [film("P", "20260101", study=study), film("P", "20260101", study=study, size=900)]
    ids = archive.add(*images)
    with stow_door(listener) as url:
        server = {"Url": url.removesuffix("studies")}
        httpx.put(f"{archive.web}/servers/echo", json=server, timeout=60).raise_for_status()
        httpx.post(f"{archive.web}/servers/echo/stow", json={"Resources": ids}, timeout=90).raise_for_status()
    for ds in images:
        assert listener.data_set(listener.instance(ds.SOPInstanceUID).object_key) == encoded(ds)


@pytest.mark.needs("orthanc")
def test_from_orthanc_over_mutual_tls(tmp_path: Path) -> None:
    papers = new_papers(tmp_path)
    (tmp_path / "orthanc").mkdir()
    wanted, unknown = film("P", "20260101", size=900), film("P", "20260102")
    with (
        orthanc(tmp_path / "orthanc", papers) as archive,
        listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "objects", tls=server(papers, mutual=True)) as listener,
    ):
        archive.add(wanted, unknown)
        archive.knows(listener, tls=True)
        work = fetching(listener, dimse_archive(archive.port, "ORTHANC", client(papers, papers.server)))
        id_ = ask(work, study=wanted.StudyInstanceUID)
        assert work.step()
        assert state(work, id_) == ("done", None)
        assert [row.sop_instance_uid for row in listener.rows(instances)] == [wanted.SOPInstanceUID]
        # Without TLS, or with a certificate of somebody else, the archive does not talk to us.
        id_ = ask(work, study=unknown.StudyInstanceUID)
        for tls in (None, client(papers, papers.stranger)):
            assert fetching(listener, dimse_archive(archive.port, "ORTHANC", tls), work.clock).step()
            assert state(work, id_) == ("queued", "archive_unreachable")
        # And the archive is not heard here without TLS.
        archive.knows(listener, tls=False)
        assert work.step()
        assert state(work, id_)[0] == "queued"
        wait_until_equal(lambda: {row.reason for row in listener.refusals()}, {"tls_handshake_failed"})


@pytest.mark.needs("orthanc")
def test_orthanc_does_not_know_where_to_send(listener: Listener, archive: Orthanc) -> None:
    ds = film("P", "20260101")
    archive.add(ds)
    httpx.delete(f"{archive.url}/modalities/echo", timeout=60)
    work = fetching(listener, dimse_archive(archive.port, "ORTHANC"))
    id_ = ask(work, study=ds.StudyInstanceUID)
    assert work.step()
    assert state(work, id_) == ("queued", "archive_refused")
    archive.knows(listener)
    assert work.step()
    assert state(work, id_) == ("done", None)


def test_only_a_part_comes_at_first(listener: Listener) -> None:
    study = new_uid()
    images = [image(study) for _ in range(3)]
    with pacs(listener.port, images, withheld={images[2].SOPInstanceUID}) as peer:
        work = fetching(listener, dimse_archive(peer.port))
        id_ = ask(work, study=study)
        assert work.step()
        fetch = of(work, id_)
        assert (fetch.state, fetch.problem) == (
            "queued",
            ("incomplete", "objects that the archive lists did not arrive, or were refused here (1 of 3)"),
        )
        assert (fetch.shares[0].expected, fetch.shares[0].held) == (3, 2)
        peer.withheld.clear()
        assert work.step()
        assert state(work, id_) == ("done", None)
        assert len(listener.rows(instances)) == 3
        # Asked again, nothing is missing: the archive is not troubled.
        second = ask(work, study=study)
        assert second != id_
        assert work.step()
        assert (state(work, second), peer.moves) == (("done", None), 2)


def test_the_archive_never_sends_all(listener: Listener) -> None:
    images = [image("2.25.5"), image("2.25.5")]
    with pacs(listener.port, images, withheld={images[0].SOPInstanceUID}) as peer:
        work = fetching(listener, dimse_archive(peer.port), attempts=3)
        id_ = ask(work, study="2.25.5")
        while work.step():
            pass
        assert (state(work, id_), of(work, id_).attempts, peer.moves) == (("failed", "incomplete"), 3, 3)


def test_the_archive_is_away_and_comes_back(listener: Listener) -> None:
    ds = image()
    with kept_port() as port:
        work = fetching(listener, dimse_archive(port))
        id_ = ask(work, study=ds.StudyInstanceUID)
        assert ask(work, study=ds.StudyInstanceUID) == id_
        assert work.step()
        assert state(work, id_) == ("queued", "archive_unreachable")
        assert not work.loop.step(threading.Event())  # not due yet
        with pacs(listener.port, [ds], port):
            assert work.step()
        assert state(work, id_) == ("done", None)


@pytest.mark.parametrize(
    ("title", "options", "text"),
    [
        ("NOBODY", {}, "the archive refused (association 1/1/7)"),
        ("PACS", {"find_status": 0xA700}, "the archive refused (C-FIND status A700)"),
        ("PACS", {"move_status": 0xA801}, "the archive refused (C-MOVE status A801)"),
    ],
)
def test_the_archive_refuses(listener: Listener, title: str, options: dict[str, Any], text: str) -> None:
    ds = image()
    with pacs(listener.port, [ds], **options) as peer:
        work = fetching(listener, dimse_archive(peer.port, title))
        id_ = ask(work, study=ds.StudyInstanceUID)
        assert work.step()
    assert (of(work, id_).state, of(work, id_).problem) == ("queued", ("archive_refused", text))


def test_a_study_that_came_by_itself_stays_reportable(listener: Listener) -> None:
    current, known = film("P", "20260301"), film("P", "20260201")
    late = again(known)
    with pacs(listener.port, [current, known, late], withheld={late.SOPInstanceUID}) as peer:
        work = fetching(listener, dimse_archive(peer.port))
        ask(work, study=known.StudyInstanceUID)
        assert work.step()
        peer.withheld.clear()
        ask(work, study=current.StudyInstanceUID, priors=1)
        while work.step():
            pass
    listener.step_until(2)
    completed = [event for event in listener.events() if event.type == STUDY_COMPLETED]
    assert {event.data.get("fetched_as_prior") for event in completed} == {None}


@contextmanager
def settings_of_a_fetching_process() -> Iterator[tuple[dict[str, object], int, int]]:
    """Settings, the listener's DICOM port and the port of its archive PACS: both stay the same over restarts."""
    with kept_port() as port, kept_port() as pacs_port:
        address = {"PACS": {"host": "127.0.0.1", "port": pacs_port}}
        settings = {"dicom_port": port, "fetch_ae_title": "PACS", "known_peers": json.dumps(address)}
        yield settings, port, pacs_port


def test_killed_in_the_middle_of_a_fetch(process: Process) -> None:
    study = new_uid()
    images = [image(study) for _ in range(3)]
    with (
        settings_of_a_fetching_process() as (settings, port, pacs_port),
        pacs(port, images, pacs_port, go=threading.Event()) as peer,
    ):
        process.start(**settings)
        url = f"http://127.0.0.1:{process.fields['http_port']}/v1/fetch"
        asked = httpx.post(url, json={"study_instance_uid": study}, timeout=60)
        assert (asked.status_code, asked.json()["state"]) == (202, "queued")
        id_ = asked.json()["id"]
        assert asked.headers["location"] == f"/v1/fetch/{id_}"
        assert httpx.post(url, json={"study_instance_uid": study}, timeout=60).status_code == 200
        wait_for(lambda: peer.moves == 1)
        assert httpx.get(f"{url}/{id_}", timeout=60).json()["state"] == "running"
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
        peer.go.set()
        process.start(**settings)
        url = f"http://127.0.0.1:{process.fields['http_port']}/v1/fetch"
        wait_until_equal(lambda: httpx.get(f"{url}/{id_}", timeout=60).json()["state"], "done")
    assert httpx.get(url, params={"state": "done"}, timeout=60).json()["items"][0]["studies"][0]["held"] == 3
    assert process.rows("select count(*) from instances") == [(3,)]
    assert process.end(signal.SIGTERM) == 0


def test_sigterm_does_not_wait_for_the_archive(process: Process) -> None:
    ds = image()
    with (
        settings_of_a_fetching_process() as (settings, port, pacs_port),
        pacs(port, [ds], pacs_port, go=threading.Event()) as peer,
    ):
        process.start(**settings)
        url = f"http://127.0.0.1:{process.fields['http_port']}/v1/fetch"
        assert httpx.post(url, json={"study_instance_uid": ds.StudyInstanceUID}, timeout=60).status_code == 202
        wait_for(lambda: peer.moves == 1)
        assert process.end(signal.SIGTERM) == 0  # a loop that does not end would have made it 1
        assert process.rows("select state, reason from fetches") == [("queued", "archive_unreachable")]


def test_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    current, prior = film("P", "20260301"), film("P", "20260201")
    with listening(postgres_url, tmp_path / "objects") as listener, pacs(listener.port, [current, prior]) as peer:
        work = fetching(listener, dimse_archive(peer.port))
        id_ = ask(work, study=current.StudyInstanceUID, priors=1)
        assert ask(work, study=current.StudyInstanceUID, priors=1) == id_
        assert work.step()
        assert state(work, id_) == ("done", None)
        listener.step_until(2)
        marks = {e.key: e.data.get("fetched_as_prior") for e in listener.events() if e.type == STUDY_COMPLETED}
        assert marks == {current.StudyInstanceUID: None, prior.StudyInstanceUID: True}
