"""An archive that speaks DICOMweb: QIDO-RS says what there is, WADO-RS delivers it (PS3.18 sections 10.4 and 10.6)."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import httpx

from dicom_listener.adapters.parts import (
    DICOM_PART,
    Exchange,
    IncomingParts,
    MalformedBody,
    TooManyParts,
    Unavailable,
    multipart_of,
)
from dicom_listener.domain.fetch import ArchivedSeries, ArchivedStudy, FetchFailed, Problem
from dicom_listener.domain.uids import is_uid
from dicom_listener.handlers.associations import Associations
from dicom_listener.handlers.fetch import Wish
from dicom_listener.handlers.receive import Receiver
from dicom_listener.ports import Peer
from pipeline.clock import Clock
from pipeline.http import CLIENT_IDLE_S
from pipeline.store import ObjectStore

CALLING = "WADO-RS"
"""Stands for the calling AE title of objects that came this way."""
_PAGE = 1000
_MOST_MATCHES = 30_000
_PIECE = 2**20
_CONNECTED = ("connection.connect_tcp.complete", "connection.start_tls.complete")


@dataclass(frozen=True)
class WebOptions:
    """`base_url`: what `/studies` is put behind."""

    base_url: str
    token: str | None
    called_ae_title: str
    maximum_object_bytes: int
    connect_seconds: float
    answer_seconds: float
    tls: ssl.SSLContext


class WebArchive:
    """Implements `handlers.fetch.Archive`. Thread-safe."""

    def __init__(
        self, options: WebOptions, receiver: Receiver, associations: Associations, store: ObjectStore, clock: Clock
    ) -> None:
        self._options = options
        self._receiver = receiver
        self._associations = associations
        self._store = store
        self._clock = clock
        self._interrupted = threading.Event()
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._client = httpx.Client(
            base_url=options.base_url.rstrip("/"),
            headers={} if options.token is None else {"Authorization": f"Bearer {options.token}"},
            verify=options.tls,
            timeout=httpx.Timeout(options.answer_seconds, connect=options.connect_seconds),
            limits=httpx.Limits(keepalive_expiry=CLIENT_IDLE_S),
        )

    def studies(self, wish: Wish) -> Sequence[ArchivedStudy]:
        """Those that the wish names."""
        uid, accession = wish.study_instance_uid, wish.accession_number
        found = self._study_query(
            {"StudyInstanceUID": uid} if uid is not None else {"AccessionNumber": accession or ""}
        )
        return [
            each
            for each in found
            if uid in (None, each.study_instance_uid) and accession in (None, each.accession_number)
        ]

    def studies_of_patient(self, patient_id: str, until: date) -> Sequence[ArchivedStudy]:
        """Taken on that day or before."""
        return self._study_query({"PatientID": patient_id, "StudyDate": f"-{until:%Y%m%d}"})

    def _study_query(self, keys: Mapping[str, str]) -> Sequence[ArchivedStudy]:
        return [
            ArchivedStudy(
                study_instance_uid=_text(item, "0020000D"),
                accession_number=_text(item, "00080050"),
                patient_id=_text(item, "00100020"),
                issuer_of_patient_id=_text(item, "00100021"),
                date=_text(item, "00080020"),
                time=_text(item, "00080030"),
                description=_text(item, "00081030"),
                modalities=_texts(item, "00080061"),
            )
            for item in self._query("/studies", "0020000D", {**keys, "includefield": ["00081030", "00100021"]})
        ]

    def series(self, study_instance_uid: str) -> Sequence[ArchivedSeries]:
        """Of one study."""
        path = f"/studies/{study_instance_uid}/series"
        return [
            ArchivedSeries(
                _text(item, "0020000E"),
                _text(item, "00080060").upper(),
                _text(item, "00180015"),
                _text(item, "0008103E"),
            )
            for item in self._query(path, "0020000E", {"includefield": ["00180015", "0008103E"]})
        ]

    def instances(self, study_instance_uid: str) -> Collection[str]:
        """SOP Instance UIDs of one study."""
        path = f"/studies/{study_instance_uid}/instances"
        return {_text(item, "00080018") for item in self._query(path, "00080018", {})}

    def _query(self, path: str, unique: str, keys: Mapping[str, str | list[str]]) -> list[dict[str, Any]]:
        """All matches, page by page; `unique` is the tag of their UID."""
        found: dict[str, dict[str, Any]] = {}
        while True:
            page = {"limit": str(_PAGE), "offset": str(len(found))}
            answer = self._get(path, {**keys, **page})
            fresh = {_text(item, unique): item for item in answer if is_uid(_text(item, unique))}
            known = len(found)
            found = fresh | found
            if len(answer) < _PAGE or len(found) == known:  # the last page, or an archive that knows no pages
                return list(found.values())
            if len(found) > _MOST_MATCHES:
                raise FetchFailed(Problem.INVALID_ANSWER, "too many matches")

    def _get(self, path: str, parameters: Mapping[str, str | list[str]]) -> list[dict[str, Any]]:
        try:
            answer = self._client.get(
                path, params=parameters, headers={"Accept": "application/dicom+json"}, extensions={"trace": self._trace}
            )
        except httpx.HTTPError as error:
            raise FetchFailed(Problem.UNREACHABLE, type(error).__name__) from error
        if answer.status_code in (204, 404):
            return []
        if answer.status_code != 200:
            raise FetchFailed(Problem.REFUSED, f"QIDO-RS status {answer.status_code}")
        try:
            items = answer.json()
        except ValueError as error:
            raise FetchFailed(Problem.INVALID_ANSWER, "no JSON") from error
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise FetchFailed(Problem.INVALID_ANSWER, "no list of data sets")
        return items

    def retrieve(self, study_instance_uid: str, stop: threading.Event) -> None:
        """WADO-RS of the study, in the transfer syntaxes that it is kept in, through the same door as STOW-RS."""
        accept = {"Accept": f'multipart/related; type="{DICOM_PART}"; transfer-syntax=*'}
        path, extensions = f"/studies/{study_instance_uid}", {"trace": self._trace}
        try:
            with self._client.stream("GET", path, headers=accept, extensions=extensions) as answer:
                if answer.status_code != 200:
                    raise FetchFailed(Problem.REFUSED, f"WADO-RS status {answer.status_code}")
                self._take(answer, study_instance_uid, stop)
        except httpx.HTTPError as error:
            raise FetchFailed(Problem.UNREACHABLE, type(error).__name__) from error

    def _take(self, answer: httpx.Response, study_instance_uid: str, stop: threading.Event) -> None:
        multipart = multipart_of(answer.headers.get("content-type", ""))
        if multipart is None or multipart[0] != DICOM_PART:
            raise FetchFailed(Problem.INVALID_ANSWER, "no multipart/related of application/dicom")
        exchange = Exchange()
        parts = IncomingParts(
            multipart[1],
            self._receiver,
            self._store,
            Peer(CALLING, self._options.called_ae_title, self._client.base_url.host[:64]),
            exchange,
            maximum_object_bytes=self._options.maximum_object_bytes,
            of_study=study_instance_uid,
        )
        whole = False
        try:
            for piece in answer.iter_bytes(_PIECE):
                if stop.is_set() or self._interrupted.is_set():
                    raise FetchFailed(Problem.UNREACHABLE, "the listener is stopping")
                parts.feed(piece)
            parts.finish()
            whole = True
        except (MalformedBody, TooManyParts) as error:
            raise FetchFailed(Problem.INVALID_ANSWER, str(error)) from error
        except Unavailable as error:
            raise FetchFailed(Problem.NOT_KEPT) from error
        finally:
            parts.discard()
            self._associations.end(exchange, self._clock.now() if whole else None)
            exchange.end()  # after that: the studies of one that has ended without a word are forgotten

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """The client tells what it does (httpcore's extension "trace")."""
        if event in _CONNECTED:
            connection = info["return_value"]
            with self._lock:
                self._connections.add(connection)
                interrupted = self._interrupted.is_set()
            if interrupted:
                _shut(connection)

    def interrupt(self) -> None:
        """The listener stops: who waits for an answer of the archive waits no longer."""
        with self._lock:
            self._interrupted.set()
            connections = list(self._connections)
        for connection in connections:
            _shut(connection)

    def close(self) -> None:
        """Close connections, when nothing runs any more."""
        self._client.close()


def _shut(connection: Any) -> None:
    """Wake who reads from it. Of a TLS connection, too, it is the one below that is shut."""
    with contextlib.suppress(OSError):  # it is closed already
        socket.socket.shutdown(connection.get_extra_info("socket"), socket.SHUT_RDWR)


def _texts(item: Mapping[str, Any], tag: str) -> tuple[str, ...]:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return tuple(str(value).strip() for value in values if value is not None) if isinstance(values, list) else ()


def _text(item: Mapping[str, Any], tag: str) -> str:
    texts = _texts(item, tag)
    return texts[0] if texts else ""
