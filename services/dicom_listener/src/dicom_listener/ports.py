"""What receiving needs from the world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Literal, Protocol

from dicom_listener.domain.access import TurnedAway
from dicom_listener.domain.completeness import CompletionReason, OpenStudy
from dicom_listener.domain.header import ObjectHeader


@dataclass(frozen=True)
class Peer:
    """Who sent an object: AE titles without padding, and the network address."""

    calling_ae_title: str
    called_ae_title: str
    address: str


@dataclass(frozen=True)
class StoredObject:
    """An object that lies durable in the object store and is to be indexed."""

    header: ObjectHeader
    transfer_syntax_uid: str
    object_key: str
    sha256: str
    size_bytes: int
    peer: Peer


@dataclass(frozen=True)
class Refusal:
    """A sender was told no. `text` has no identifiers; the accession number lets a person find it.

    `status` is the DIMSE status of a refused object or request, `http_status` that of a refused STOW-RS request,
    `rejection` (result, source, reason) that of a rejected association; a connection that ended has none of them.
    """

    scope: Literal["connection", "association", "object", "request"]
    reason: str
    text: str
    peer: Peer
    status: int | None = None
    rejection: tuple[int, int, int] | None = None
    http_status: int | None = None
    accession_number: str | None = None
    sop_class_uid: str | None = None
    quarantine_key: str | None = None

    @classmethod
    def of_stranger(cls, reason: TurnedAway, address: str, detail: str = "") -> Refusal:
        """A connection is closed before anybody said who they are."""
        text = f"{reason.text} ({detail})" if detail else reason.text
        return cls("connection", reason.code, text, Peer("", "", address))

    @property
    def answer(self) -> str | None:
        """What the sender was told, as people write it: `A700`, `HTTP 503`, `2/3/2`."""
        if self.status is not None:
            return f"{self.status:04X}"
        if self.http_status is not None:
            return f"HTTP {self.http_status}"
        return None if self.rejection is None else "/".join(str(part) for part in self.rejection)


@dataclass(frozen=True)
class CountedRefusal:
    """The same refusal, `count` times between two moments."""

    refusal: Refusal
    count: int
    first_at: datetime
    last_at: datetime


class Recorded(Enum):
    """What became of a stored object in the index."""

    NEW = "new"
    REPLACED = "replaced"
    DUPLICATE = "duplicate"
    KEPT_BESIDE = "kept_beside"


class Ledger(Protocol):
    """The service's database. Every method is one transaction and raises SQLAlchemy's errors when that fails."""

    def record(self, stored: StoredObject, now: datetime) -> Recorded:
        """Index an object; with it, in the same transaction, the event of a study version that it opens."""
        ...

    def refuse(self, refusals: Sequence[CountedRefusal], now: datetime) -> None:
        """Write down refusals, with an event for each."""
        ...

    def open_studies(self) -> Sequence[OpenStudy]:
        """All studies that are being received."""
        ...

    def mark_released(self, released: Mapping[str, datetime]) -> None:
        """Enter when the last association of each study was released."""
        ...

    def mark_abandoned(self, now: datetime) -> int:
        """At start: associations that died with the earlier process count as released. Returns how many studies."""
        ...

    def complete(self, study: OpenStudy, reason: CompletionReason, now: datetime) -> bool:
        """Close the version and write its event; false when the study has changed in the meantime."""
        ...


class Association(Protocol):
    """An association's thread, or what stands for it in another process."""

    def is_alive(self) -> bool:
        """False once it has ended, however it ended."""
        ...


class CarriedStudies(Protocol):
    """Which studies the open associations have carried."""

    def carry(self, association: Association, study_instance_uid: str) -> None:
        """The association brings an object of the study."""
        ...

    def end(self, association: Association, released_at: datetime | None) -> None:
        """The association has ended: released in order, or (None) aborted, after which its sender will try again."""
        ...


class Limits(Protocol):
    """How many associations may be open at the same time."""

    def admit(self, association: Association, address: str) -> TurnedAway | None:
        """Count it from now on; or why there is no room for it."""
        ...

    def leave(self, association: Association) -> None:
        """It has ended."""
        ...


class Index(Protocol):
    """The part of the ledger that receiving needs."""

    def record(self, stored: StoredObject, now: datetime) -> Recorded:
        """Index an object; with it, in the same transaction, the event of a study version that it opens."""
        ...


class Refusals(Protocol):
    """Where every "no" is told."""

    def note(self, refusal: Refusal) -> None:
        """Remember it; never waits."""
        ...


class StagedFile(Protocol):
    """An object on its way in: preamble, file meta and the data set as received, in the staging folder."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    size_bytes: int
    data_set_offset: int

    def finish(self) -> str:
        """Close the file and return its SHA-256; raises `Refused` when writing had failed or was not allowed."""
        ...

    def header(self) -> ObjectHeader:
        """Index the data set; raises `Refused`."""
        ...

    def put(self, key: str) -> None:
        """Move the file into the object store; durable on return."""
        ...

    def discard(self) -> None:
        """Remove the file if it is still there."""
        ...
