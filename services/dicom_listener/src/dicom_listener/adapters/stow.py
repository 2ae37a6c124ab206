"""STOW-RS (PS3.18 section 10.5): `POST /dicom-web/studies[/{study}]`, the second door.

The body is read in pieces, each handed to a thread that writes it; nobody holds a study in memory.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
from anyio import to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from dicom_listener import metrics
from dicom_listener.adapters.parts import (
    DICOM_PART,
    Exchange,
    IncomingParts,
    MalformedBody,
    TooManyParts,
    Unavailable,
    multipart_of,
)
from dicom_listener.domain.access import AccessRule, check_access
from dicom_listener.domain.refusals import Reason
from dicom_listener.domain.stow import NotTaken, PartOutcome, http_status, store_instances_response
from dicom_listener.domain.uids import is_uid
from dicom_listener.handlers.associations import Associations
from dicom_listener.handlers.receive import Receiver
from dicom_listener.handlers.refusals import RefusalBook
from dicom_listener.ports import Peer, Refusal
from pipeline.clock import Clock
from pipeline.store import ObjectStore

log = logging.getLogger(__name__)

_PIECE = 2**20  # bytes handed to a thread at once
_RETRY_AFTER_S = 30
_UNREAD = 64 * 2**20  # bytes of a refused body that are read and dropped: a sender cut off does not hear the answer
_ANSWERS = ("*/*", "application/*", "application/json", "application/dicom+json")


@dataclass(frozen=True)
class StowOptions:
    """Names and limits of the STOW-RS port. `ae_title` stands for the calling AE title of its senders."""

    ae_title: str
    called_ae_title: str
    token: str | None
    maximum_requests: int
    maximum_requests_per_peer: int
    maximum_request_bytes: int
    maximum_object_bytes: int
    silence_seconds: float
    access: Sequence[AccessRule] = ()


class _No(Exception):
    """A request is refused."""

    def __init__(self, why: NotTaken, detail: str = "") -> None:
        super().__init__(why.code)
        self.why = why
        self.status = why.status
        self.text = f"{why.text} ({detail})" if detail else why.text


class _Body:
    """A request's body. Starlette's own stream has no time limit and does not say when all is read."""

    def __init__(self, request: Request, silence_seconds: float) -> None:
        self._request = request
        self._silence_seconds = silence_seconds
        self._waits_for_leave = "expect" in request.headers
        self._more = True

    async def next(self) -> tuple[bytes, bool]:
        """A piece, and whether there are more; raises `_No` when none comes in time, and `ClientDisconnect`."""
        self._waits_for_leave = False
        try:
            async with asyncio.timeout(self._silence_seconds):
                message = await self._request.receive()
        except TimeoutError:
            self._more = False
            raise _No(NotTaken.SILENT) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._more = message.get("more_body", False)
        return message.get("body", b""), self._more

    async def drop_rest(self) -> None:
        """Read what a refused sender still sends, unless it waits for leave (100-continue) or there is much of it."""
        dropped = 0
        while self._more and not self._waits_for_leave and dropped < _UNREAD:
            try:
                piece, _ = await self.next()
            except (_No, ClientDisconnect):
                return
            dropped += len(piece)


class StowDoor:
    """The routes. Runs in one event loop, which its counters rely on."""

    def __init__(
        self,
        options: StowOptions,
        receiver: Receiver,
        associations: Associations,
        refusals: RefusalBook,
        store: ObjectStore,
        clock: Clock,
    ) -> None:
        self._options = options
        self._receiver = receiver
        self._associations = associations
        self._refusals = refusals
        self._store = store
        self._clock = clock
        self._open: Counter[str] = Counter()
        self._threads = anyio.CapacityLimiter(options.maximum_requests)

    def routes(self) -> list[BaseRoute]:
        """For the application."""
        return [
            Route("/dicom-web/studies", self._store_instances, methods=["POST"]),
            Route("/dicom-web/studies/{study}", self._store_instances, methods=["POST"]),
        ]

    async def _store_instances(self, request: Request) -> Response:
        address = request.client.host if request.client else ""
        peer = Peer(self._options.ae_title, self._options.called_ae_title, address)
        body = _Body(request, self._options.silence_seconds)
        self._open[address] += 1
        try:
            response = await self._answer(request, body, peer)
        except _No as no:
            self._note(no, peer)
            await body.drop_rest()
            response = _problem(no)
        finally:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]
        metrics.STOW_REQUESTS.labels(status=str(response.status_code)).inc()
        return response

    async def _answer(self, request: Request, body: _Body, peer: Peer) -> Response:
        self._check_sender(request, peer)
        boundary = self._check_headers(request)
        study = request.path_params.get("study")
        if study is not None and not is_uid(study):
            raise _No(NotTaken.INVALID_STUDY)
        refused = await self._in_thread(self._receiver.lacks_room)
        if refused is not None:
            low = refused.reason is Reason.LOW_SPACE
            raise _No(NotTaken.LOW_SPACE if low else NotTaken.UNAVAILABLE)
        exchange = Exchange()
        parts = IncomingParts(
            boundary,
            self._receiver,
            self._store,
            peer,
            exchange,
            maximum_object_bytes=self._options.maximum_object_bytes,
            of_study=study,
        )
        whole = False
        try:
            await self._read(body, parts)
            if not parts.outcomes:
                raise MalformedBody("it holds no object")
            whole = True
            return _response(http_status(parts.outcomes), parts.outcomes)
        except (_No, MalformedBody, TooManyParts, Unavailable) as error:
            no = error if isinstance(error, _No) else _as_no(error)
            self._note(no, peer)
            await body.drop_rest()
            return _response(no.status, parts.outcomes) if parts.outcomes else _problem(no)
        except ClientDisconnect:
            self._note(_No(NotTaken.BROKEN), peer)
            return Response(status_code=400)  # nobody hears it
        finally:
            parts.discard()
            self._associations.end(exchange, self._clock.now() if whole else None)
            exchange.end()  # after that: the studies of one that has ended without a word are forgotten

    def _check_sender(self, request: Request, peer: Peer) -> None:
        options = self._options
        turned_away = check_access(options.access, peer.called_ae_title, peer.calling_ae_title, peer.address)
        if turned_away is not None:
            raise _No(NotTaken.NOT_ALLOWED, turned_away.text)
        if options.token is not None:
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), options.token.encode()):
                raise _No(NotTaken.TOKEN)
        if self._open.total() > options.maximum_requests:
            raise _No(NotTaken.TOO_MANY)
        if self._open[peer.address] > options.maximum_requests_per_peer:
            raise _No(NotTaken.TOO_MANY_OF_PEER)

    def _check_headers(self, request: Request) -> bytes:
        headers = request.headers
        multipart = multipart_of(headers.get("content-type", ""))
        if multipart is None:
            raise _No(NotTaken.MEDIA_TYPE)
        root, boundary = multipart
        if root != DICOM_PART:
            raise _No(NotTaken.MEDIA_TYPE, "no metadata with bulk data")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise _No(NotTaken.ENCODING)
        accepted = [each.partition(";")[0].strip().lower() for each in headers.get("accept", "*/*").split(",")]
        if not any(each in _ANSWERS for each in accepted):
            raise _No(NotTaken.ANSWER_TYPE)
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._options.maximum_request_bytes:
            raise _No(NotTaken.TOO_LARGE)
        return boundary

    async def _read(self, body: _Body, parts: IncomingParts) -> None:
        buffer, total, more = bytearray(), 0, True
        while more:
            piece, more = await body.next()
            total += len(piece)
            if total > self._options.maximum_request_bytes:
                raise _No(NotTaken.TOO_LARGE)
            buffer += piece
            if buffer and (not more or len(buffer) >= _PIECE):
                await self._in_thread(partial(parts.feed, bytes(buffer)))
                buffer.clear()
        parts.finish()

    async def _in_thread(self, work: Any) -> Any:
        return await to_thread.run_sync(work, limiter=self._threads)

    def _note(self, no: _No, peer: Peer) -> None:
        self._refusals.note(Refusal("request", no.why.code, no.text, peer, http_status=no.status))


def _as_no(error: Exception) -> _No:
    if isinstance(error, MalformedBody):
        return _No(NotTaken.MALFORMED, str(error))
    if isinstance(error, TooManyParts):
        return _No(NotTaken.TOO_LARGE)
    return _No(NotTaken.UNAVAILABLE)


def _headers(status: int) -> dict[str, str]:
    headers = {}
    if status >= 400:
        headers["Connection"] = "close"  # what is left of the body must not be read as a request
    if status == 503:
        headers["Retry-After"] = str(_RETRY_AFTER_S)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def _response(status: int, outcomes: Sequence[PartOutcome]) -> Response:
    body = store_instances_response(outcomes)
    return JSONResponse(body, status, _headers(status), "application/dicom+json")


def _problem(no: _No) -> Response:
    body = {"type": "about:blank", "title": no.text, "status": no.status}
    return JSONResponse(body, no.status, _headers(no.status), "application/problem+json")
