"""A multipart/related body of Part 10 files, taken in pieces: each part goes through the same door as a C-STORE.

The bytes of a part's data set are staged as they come, under the listener's own file meta information, so that an
object makes the same file whichever way it comes. Used for STOW-RS requests and for answers to WADO-RS.
"""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from dicom_listener.adapters.staging import IncomingFile, UnreadableFile
from dicom_listener.domain.part10 import read_file_meta
from dicom_listener.domain.refusals import Reason, Refused
from dicom_listener.domain.stow import PartOutcome
from dicom_listener.handlers.receive import Receiver
from dicom_listener.ports import Peer
from pipeline.store import ObjectStore

DICOM_PART = "application/dicom"
_MOST_PARTS = 30_000
_LONGEST_BOUNDARY = 200  # bytes; RFC 2046 allows 70, but Orthanc writes 73
_NOWHERE_UID = "2.25.0"  # asks for space before anything is known of an object


class MalformedBody(Exception):
    """The body is no multipart message. The text says why, without a value of it."""


class TooManyParts(Exception):
    """More objects than one body may hold."""


class Unavailable(Exception):
    """An object could not be kept for want of space, store or database: the sender should send all again, later."""


def multipart_of(content_type: str) -> tuple[str, bytes] | None:
    """(root type, boundary) of a Content-Type, or None if it is no multipart/related with a usable boundary.

    A missing root type counts as Part 10 files, which is all that is taken.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind.lower() != b"multipart/related" or not 0 < len(boundary) <= _LONGEST_BOUNDARY:
        return None
    return options.get(b"type", DICOM_PART.encode()).decode("latin-1").strip().lower(), boundary


class Exchange:
    """Counts as an association: studies that it carries stay open until it ends."""

    def __init__(self) -> None:
        self._open = True

    def is_alive(self) -> bool:
        """Until `end`."""
        return self._open

    def end(self) -> None:
        """The request has been answered, or broke."""
        self._open = False


class IncomingParts:
    """One body. Not thread-safe: its pieces come one after the other."""

    def __init__(
        self,
        boundary: bytes,
        receiver: Receiver,
        store: ObjectStore,
        peer: Peer,
        exchange: Exchange,
        *,
        maximum_object_bytes: int,
        of_study: str | None = None,
    ) -> None:
        self.outcomes: list[PartOutcome] = []
        self._receiver = receiver
        self._store = store
        self._peer = peer
        self._exchange = exchange
        self._maximum = maximum_object_bytes
        self._of_study = of_study
        self._head = bytearray()
        self._file: IncomingFile | None = None
        self._is_whole = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._whole,
            },
        )

    def feed(self, piece: bytes) -> None:
        """The next bytes; raises `MalformedBody`, `TooManyParts`, `Unavailable`, after which nothing more is taken."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise MalformedBody("its parts are not separated as they should be") from error

    def finish(self) -> None:
        """All bytes have come; raises `MalformedBody` if the last delimiter has not."""
        if not self._is_whole:
            raise MalformedBody("it ends before its last delimiter")

    def discard(self) -> None:
        """Drop what is half received; objects that are kept stay."""
        if self._file is not None:
            self._file.discard()
            self._file = None

    def _whole(self) -> None:
        self._is_whole = True

    def _begin(self) -> None:
        if len(self.outcomes) >= _MOST_PARTS:
            raise TooManyParts
        self._head.clear()
        self._file = None

    def _data(self, piece: bytes, start: int, end: int) -> None:
        view = memoryview(piece)[start:end]
        if self._file is not None:
            self._file.write(view)
        else:
            self._head += view
            self._open(whole=False)

    def _open(self, *, whole: bool) -> None:
        """Stage the object as soon as its file meta information has come."""
        head = bytes(self._head)
        try:
            meta = read_file_meta(head, whole=whole)
        except Refused as unreadable:
            refused = self._receiver.admit(_NOWHERE_UID, _NOWHERE_UID, _NOWHERE_UID)
            self._file = UnreadableFile(self._store, refused, unreadable, maximum_bytes=self._maximum)
            self._file.write(head)
            return
        if meta is None:
            return
        uids = (meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid)
        self._file = IncomingFile(self._store, *uids, self._receiver.admit(*uids), maximum_bytes=self._maximum)
        self._file.write(head[meta.size_bytes :])

    def _end(self) -> None:
        if self._file is None:
            self._open(whole=True)
        file, self._file = self._file, None
        assert file is not None  # a whole head is readable or not
        status = self._receiver.receive(file, self._peer, self._exchange, self._of_study)
        self.outcomes.append(PartOutcome(file.sop_class_uid or None, file.sop_instance_uid or None, status))
        if status == Reason.DATABASE_UNAVAILABLE.status:  # A700H, whatever is out of reach
            raise Unavailable
