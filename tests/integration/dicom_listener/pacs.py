"""Archives to fetch from: an Orthanc of the test's own with its DICOMweb plugin, a PACS that misbehaves on demand."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when the module is loaded
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)

from dicom_listener.adapters.commitments import PeerAddress
from dicom_listener.adapters.dimse_archive import DimseArchive, DimseOptions
from dicom_listener.adapters.fetches import SqlFetches
from dicom_listener.adapters.web_archive import WebArchive, WebOptions
from dicom_listener.handlers.fetch import Archive, FetchLoop
from integration.dicom_listener.certificates import Papers
from integration.dicom_listener.peers import DX, EXPLICIT, Listener, wait_for
from integration.dicom_listener.stow_peers import part10
from pipeline.clock import Clock, ManualClock, SystemClock
from servers import ports

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass(frozen=True)
class Orthanc:
    """REST at `url`, DICOMweb at `web`, DICOM on `port` as ORTHANC."""

    url: str
    port: int

    @property
    def web(self) -> str:
        return f"{self.url}/dicom-web"

    def add(self, *images: Dataset) -> list[str]:
        """Upload; Orthanc's own identifiers."""
        answers = [httpx.post(f"{self.url}/instances", content=part10(ds), timeout=60).json() for ds in images]
        return [answer["ID"] for answer in answers]

    def knows(self, listener: Listener, *, tls: bool = False) -> None:
        """Let C-MOVE to ECHO go to this listener."""
        where = {"AET": "ECHO", "Host": "127.0.0.1", "Port": listener.port, "UseDicomTls": tls}
        httpx.put(f"{self.url}/modalities/echo", json=where, timeout=60).raise_for_status()


@contextmanager
def orthanc(folder: Path, papers: Papers | None = None) -> Iterator[Orthanc]:
    """A new, empty Orthanc on ports of its own; with papers it speaks TLS, and wants to see a certificate."""
    http_port = dicom_port = ports.free_port()
    while dicom_port == http_port:
        dicom_port = ports.free_port()
    configuration = {
        "StorageDirectory": str(folder / "data"),
        "IndexDirectory": str(folder / "data"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAet": "ORTHANC",
        "DicomPort": dicom_port,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowMove": True,
        "DicomModalitiesInDatabase": True,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "StableAge": 1,
        "DicomAssociationCloseDelay": 0,  # it would keep associations open for a while in case of more
    }
    if papers is not None:
        certificate, key = papers.sender
        configuration |= {
            "DicomTlsEnabled": True,
            "DicomTlsCertificate": str(certificate),
            "DicomTlsPrivateKey": str(key),
            "DicomTlsTrustedCertificates": str(papers.authority),
            "DicomTlsRemoteCertificateRequired": True,
        }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(["/usr/sbin/Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
    running = Orthanc(f"http://127.0.0.1:{http_port}", dicom_port)

    def answers() -> bool:
        assert child.poll() is None, (folder / "log").read_text()
        try:
            return httpx.get(f"{running.url}/system", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_for(answers, 180)
        yield running
    finally:
        child.terminate()
        try:
            child.wait(timeout=60)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@dataclass
class Pacs:
    """A Query/Retrieve SCP over a list of images."""

    port: int
    listener_port: int = 0
    images: list[Dataset] = field(default_factory=list)
    withheld: set[str] = field(default_factory=set)
    """SOP Instance UIDs that C-FIND lists and C-MOVE does not send."""
    move_status: int | None = None
    find_status: int | None = None
    moves: int = 0
    go: threading.Event = field(default_factory=threading.Event)
    """C-MOVE waits for it."""

    def find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        asked = event.identifier
        if self.find_status is not None:
            yield self.find_status, None
            return
        seen = set()
        level = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}
        for ds in self.images:
            keys = [e for e in asked if e.value and e.keyword not in ("QueryRetrieveLevel", "StudyDate")]
            uid = ds[level[asked.QueryRetrieveLevel]].value
            if uid in seen or any(str(ds.get(e.keyword, "")) != str(e.value) for e in keys):
                continue
            seen.add(uid)
            match = Dataset()
            for element in asked:
                setattr(match, element.keyword, ds.get(element.keyword, ""))
            if "ModalitiesInStudy" in asked:
                match.ModalitiesInStudy = ds.Modality
            yield 0xFF00, match

    def move(self, event: Any) -> Iterator[Any]:
        self.moves += 1
        self.go.wait(90)
        if self.move_status is not None:
            yield None, None  # move destination unknown
            return
        study = event.identifier.StudyInstanceUID
        sent = [ds for ds in self.images if ds.StudyInstanceUID == study and ds.SOPInstanceUID not in self.withheld]
        yield "127.0.0.1", self.listener_port
        yield len(sent)
        for ds in sent:
            ds.file_meta = FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = UID(EXPLICIT)
            yield 0xFF00, ds


@contextmanager
def pacs(listener_port: int, images: Sequence[Dataset], port: int = 0, **more: Any) -> Iterator[Pacs]:
    """It listens as PACS; its C-MOVE goes to the listener, whatever the destination is called."""
    running = Pacs(port, listener_port, list(images), **more)
    if "go" not in more:
        running.go.set()
    ae = AE(ae_title="PACS")
    ae.require_called_aet = True
    for model in (StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelMove):
        ae.add_supported_context(model)
    ae.add_requested_context(DX, EXPLICIT)
    handlers = [(evt.EVT_C_FIND, running.find), (evt.EVT_C_MOVE, running.move)]
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)  # type: ignore[arg-type]
    assert server is not None
    running.port = server.server_address[1]
    try:
        yield running
    finally:
        running.go.set()
        server.shutdown()


def dimse_archive(port: int, title: str = "PACS", tls: ssl.SSLContext | None = None) -> DimseArchive:
    """As the listener ECHO."""
    address = PeerAddress("127.0.0.1", port, tls=tls is not None)
    return DimseArchive(DimseOptions("ECHO", title, address, connect_seconds=90, answer_seconds=90, tls=tls))


@contextmanager
def archive_of(kind: str, running: Orthanc, listener: Listener) -> Iterator[Archive]:
    """Orthanc over DIMSE, or over DICOMweb through the listener's door."""
    if kind == "dimse":
        yield dimse_archive(running.port, "ORTHANC")
        return
    options = WebOptions(running.web, None, "ECHO", 2**30, 20, 60, ssl.create_default_context())
    associations = listener.receiver._associations
    archive = WebArchive(options, listener.receiver, associations, listener.store, SystemClock())
    try:
        yield archive
    finally:
        archive.close()


@dataclass
class Fetching:
    """The loop, stepped by the test."""

    fetches: SqlFetches
    loop: FetchLoop
    clock: Clock

    def step(self) -> bool:
        if isinstance(self.clock, ManualClock):
            self.clock.advance(700)
        return self.loop.step(threading.Event())


def fetching(listener: Listener, archive: Archive, clock: Clock | None = None, attempts: int = 5) -> Fetching:
    """On the listener's database."""
    chosen = clock or ManualClock(SystemClock().now())
    fetches = SqlFetches(listener.database)
    return Fetching(fetches, FetchLoop(fetches, archive, threading.Event(), chosen, attempts=attempts), chosen)
