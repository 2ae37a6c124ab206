"""Data sets, a Storage SCU that sends bytes exactly as told, and the listener's parts put together in one process."""

from __future__ import annotations

import itertools
import socket
import ssl
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE

from dicom_listener.adapters.commitment_scp import CommitmentDesk, CommitmentScp
from dicom_listener.adapters.commitments import DimseReporter, PeerAddress, SqlCommitments
from dicom_listener.adapters.key_locks import KeyLocks
from dicom_listener.adapters.ledger import SqlLedger
from dicom_listener.adapters.scp import ScpOptions, StorageScp
from dicom_listener.adapters.tables import instances, outbox, refusals, studies
from dicom_listener.app import MIGRATIONS
from dicom_listener.assembly import free_bytes
from dicom_listener.domain.completeness import Rules
from dicom_listener.domain.encoded import DEFLATED
from dicom_listener.domain.watermark import Watermark
from dicom_listener.handlers.associations import Associations
from dicom_listener.handlers.commit import CommitmentLoop
from dicom_listener.handlers.complete import CompletenessLoop
from dicom_listener.handlers.limits import AssociationLimits
from dicom_listener.handlers.receive import Receiver
from dicom_listener.handlers.refusals import RefusalBook
from pipeline.clock import SystemClock
from pipeline.database import Database
from pipeline.events import Event
from pipeline.store import LocalObjectStore
from servers import ports

DX = "1.2.840.10008.5.1.4.1.1.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
_numbers = itertools.count(1)


def new_uid() -> str:
    """Unique over test runs."""
    return f"2.25.{time.time_ns()}{next(_numbers)}"


def image(study: str | None = None, *, size: int = 64, sop_class: str = DX, **changes: Any) -> Dataset:
    """A small chest film of a new instance."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, new_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study or new_uid(), new_uid()
    ds.PatientID, ds.PatientName, ds.AccessionNumber = "PHANTOM-1", "PHANTOM^ONE", "EX-0001"
    ds.Modality, ds.BodyPartExamined = "DX", "CHEST"
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = size, size, 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelData = bytes(i * 7 % 251 for i in range(size)) * size
    for keyword, value in changes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def encoded(ds: Dataset, transfer_syntax_uid: str = EXPLICIT) -> bytes:
    """The data set's bytes in a transfer syntax; compressed ones get fragments that only look like a bit stream."""
    syntax = UID(transfer_syntax_uid)
    if syntax.is_transfer_syntax and syntax.is_compressed and syntax not in DEFLATED and "PixelData" in ds:
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        ds.PixelData = encapsulate([ds.PixelData[:101]])
    buffer = DicomBytesIO()
    buffer.is_implicit_VR = transfer_syntax_uid == IMPLICIT
    buffer.is_little_endian = transfer_syntax_uid != BIG
    write_dataset(buffer, ds)
    data = buffer.getvalue()
    if syntax in DEFLATED:
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = deflate.compress(data) + deflate.flush()
    return data


class Checkpoint(threading.Event):
    """In place of pynetdicom's own, which lets its thread through once more after it was taken for held.

    Then the thread takes an answer for itself and drops it ("unexpected service message").
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = threading.Event()
        self.set()

    def set(self) -> None:
        """Let the thread go on."""
        self.held.clear()
        super().set()

    def wait(self, timeout: float | None = None) -> bool:
        """What the thread does in each turn."""
        if not self.is_set():
            self.held.set()
        return super().wait(timeout)


class Sender:
    """One association of a Storage SCU."""

    def __init__(
        self,
        port: int,
        contexts: list[tuple[str, list[str]]] | None = None,
        *,
        calling: str = "SENDER",
        called: str = "ECHO",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        ae = AE(ae_title=calling)
        ae.acse_timeout = ae.dimse_timeout = 90
        ae.network_timeout = 600  # how long a test may leave the association idle
        for abstract_syntax, transfer_syntaxes in contexts or [(DX, [EXPLICIT]), (VERIFICATION, [IMPLICIT])]:
            ae.add_requested_context(abstract_syntax, transfer_syntaxes)
        connections: list[Any] = []
        self.assoc = ae.associate(
            "127.0.0.1",
            port,
            ae_title=called,
            tls_args=None if tls is None else (tls, "localhost"),
            evt_handlers=[(evt.EVT_CONN_OPEN, lambda event: connections.append(event.assoc.dul.socket.socket))],
        )
        self._checkpoint = self.assoc._reactor_checkpoint = Checkpoint()
        for connection in connections:  # the library leaves it open when the peer was the first to go
            weakref.finalize(self, connection.close)

    def store(
        self, data: bytes, sop_class: str, sop_instance: str, transfer_syntax_uid: str | None = None
    ) -> int | None:
        """C-STORE these bytes under these UIDs; the status, or None if the association broke."""
        request = C_STORE()
        request.MessageID = 1
        request.AffectedSOPClassUID = UID(sop_class)
        request.AffectedSOPInstanceUID = UID(sop_instance)
        request.Priority = 2
        request.DataSet = BytesIO(data)
        assoc = self.assoc
        context = next(
            cx.context_id
            for cx in assoc.accepted_contexts
            if transfer_syntax_uid in (None, cx.transfer_syntax[0]) and cx.abstract_syntax != VERIFICATION
        )
        assert context is not None
        self._checkpoint.clear()  # as pynetdicom's own send_* methods do
        while not self._checkpoint.held.wait(0.1):
            if not assoc.is_alive():
                return None
        assoc.dimse.send_msg(request, context)
        _, response = assoc.dimse.get_msg(block=True)
        self._checkpoint.set()
        return None if response is None else response.Status

    def send(self, ds: Dataset) -> int | None:
        """C-STORE a data set in Explicit VR Little Endian."""
        return self.store(encoded(ds), ds.SOPClassUID, ds.SOPInstanceUID)

    def rejected_for_now(self) -> bool:
        """Whether the association was rejected as transient."""
        answer = self.assoc.acceptor.primitive
        return self.assoc.is_rejected and answer is not None and answer.result == 2

    @classmethod
    def is_rejected(cls, port: int) -> bool:
        """Whether the listener rejects an association for now; one that it accepts is released."""
        sender = cls(port)
        sender.assoc.release()
        return sender.rejected_for_now()

    def __enter__(self) -> Sender:
        assert self.assoc.is_established
        return self

    def __exit__(self, *_: object) -> None:
        self.assoc.release()


def half_a_message(sender: Sender, data: bytes, sop_instance_uid: str) -> None:
    """Send the command and the first half of the fragments of a C-STORE."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = UID(DX), UID(sop_instance_uid)
    request.DataSet = BytesIO(data)
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    fragments = list(message.encode_msg(1, 16_384))
    for fragment in fragments[: len(fragments) // 2]:
        sender.assoc.dul.send_pdu(fragment)


@dataclass
class Listener:
    """The real parts, wired as in `app.py`, on one database and one folder."""

    database: Database
    store: LocalObjectStore
    scp: StorageScp
    loop: CompletenessLoop
    receiver: Receiver
    book: RefusalBook
    committing: CommitmentLoop
    root: Path

    @property
    def port(self) -> int:
        return self.scp.port

    def rows(self, table: sa.Table) -> list[Any]:
        with self.database.read() as connection:
            return list(connection.execute(sa.select(table)).all())

    def events(self) -> list[Event]:
        with self.database.read() as connection:
            payloads = connection.scalars(sa.select(outbox.table.c.payload).order_by(outbox.table.c.id)).all()
        return [Event.from_bytes(payload) for payload in payloads]

    def instance(self, sop_instance_uid: str) -> Any:
        return next(row for row in self.rows(instances) if row.sop_instance_uid == sop_instance_uid and row.valid)

    def study(self, study_instance_uid: str) -> Any:
        return next(row for row in self.rows(studies) if row.study_instance_uid == study_instance_uid)

    def refusals(self) -> list[Any]:
        self.book.flush(everything=True)
        return self.rows(refusals)

    def staged(self) -> list[Path]:
        return list(self.store.staging_dir().iterdir())

    def data_set(self, object_key: str) -> bytes:
        return data_set_bytes(self.root / object_key)

    def step_until(self, closed: int) -> None:
        """Let the completeness loop look until it has closed so many study versions."""
        steps = (self.loop.step() for _ in itertools.count())
        so_far = itertools.accumulate(steps)
        wait_for(lambda: next(so_far) >= closed)


def data_set_bytes(path: Path) -> bytes:
    """What follows the file meta information of a Part 10 file."""
    raw = path.read_bytes()
    assert raw[128:132] == b"DICM"
    assert raw[132:136] == b"\x02\x00\x00\x00"
    return raw[144 + int.from_bytes(raw[140:144], "little") :]


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    """Until it is true, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def wait_until_equal(ask: Callable[[], object], expected: object, seconds: float = 90) -> None:
    """Until `ask` gives that, or fail with what it gave last."""
    deadline = time.monotonic() + seconds
    while (seen := ask()) != expected and time.monotonic() < deadline:
        time.sleep(0.02)
    assert seen == expected


@contextmanager
def kept_port() -> Iterator[int]:
    """A port on which nobody listens, and which nobody else gets: who is told of it may listen there and leave again.

    As long as all do so with SO_REUSEADDR, and only one of them listens, the system lets them share it.
    """
    with socket.socket() as keeping:
        keeping.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeping.bind(("127.0.0.1", ports.free_port()))
        yield keeping.getsockname()[1]


@contextmanager
def listening(
    url: str,
    root: Path,
    *,
    rules: Rules | None = None,
    policy: str = "keep_first",
    watermark: Watermark | None = None,
    store: LocalObjectStore | None = None,
    free: Callable[[], int | None] | None = None,
    known_peers: Mapping[str, PeerAddress] | None = None,
    **options: Any,
) -> Iterator[Listener]:
    """A listener on a free port of the loopback."""
    database = Database(url)
    database.migrate(MIGRATIONS)
    objects = store or LocalObjectStore(root)
    clock, associations = SystemClock(), Associations()
    ledger = SqlLedger(database, policy)  # type: ignore[arg-type]  # tests pass one of the two words
    book = RefusalBook(ledger, clock)
    receiver = Receiver(
        objects,
        ledger,
        associations,
        book,
        KeyLocks(),
        clock,
        watermark or Watermark(0, 0),
        free or (lambda: free_bytes(objects)),
    )
    commitments = SqlCommitments(database)
    reporter = DimseReporter(known_peers or {}, None, 120)
    committing = CommitmentLoop(commitments, objects, reporter, book, clock)
    commitment = CommitmentScp(CommitmentDesk(commitments, reporter, committing), book, clock)
    loop = CompletenessLoop(ledger, associations, rules or Rules(600, 0.1, 3600), clock)
    settings: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "ae_title": "ECHO",
        "require_called_aet": False,
        "maximum_associations": 16,
        "maximum_pdu_bytes": 16_384,
        "maximum_object_bytes": 2**30,
        "request_timeout_seconds": 30.0,
        "network_timeout_seconds": 60.0,
    }
    limits = AssociationLimits(
        options.get("maximum_associations", 16), options.pop("maximum_associations_per_peer", 16)
    )
    scp = StorageScp(
        ScpOptions(**(settings | options)), receiver, associations, limits, book, objects, clock, commitment
    )
    scp.start()
    try:
        yield Listener(database, objects, scp, loop, receiver, book, committing, root)
    finally:
        scp.drain(0)
        database.close()
