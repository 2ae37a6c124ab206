"""A DICOMweb service that refuses, is away, answers nonsense, or sends only a part."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from dicom_listener.adapters.tables import instances
from dicom_listener.adapters.web_archive import WebArchive, WebOptions
from dicom_listener.domain.fetch import FetchFailed
from dicom_listener.domain.watermark import Watermark
from dicom_listener.handlers.fetch import Wish
from integration.dicom_listener.pacs import Fetching, fetching
from integration.dicom_listener.peers import Listener, image, listening
from integration.dicom_listener.stow_peers import CONTENT_TYPE, body_of, part10
from pipeline.clock import SystemClock
from pipeline.http import HttpServer, bind
from servers import ports

STUDY = "2.25.4711"


@dataclass
class Web:
    """Answers that the test chooses."""

    images: list[Dataset] = field(default_factory=lambda: [image(STUDY), image(STUDY)])
    query: Response | None = None
    retrieve: Response | None = None
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)

    async def studies(self, request: Request) -> Response:
        self._note(request)
        return self.query or JSONResponse([{"0020000D": {"vr": "UI", "Value": [STUDY]}}])

    async def listed(self, request: Request) -> Response:
        """From `offset` on, 1000 to a page."""
        self._note(request)
        offset = int(request.query_params["offset"])
        uids = [str(ds.SOPInstanceUID) for ds in self.images][offset : offset + 1000]
        return JSONResponse([{"00080018": {"vr": "UI", "Value": [uid]}} for uid in uids])

    async def study(self, request: Request) -> Response:
        self._note(request)
        return self.retrieve or multipart(*self.images)

    def _note(self, request: Request) -> None:
        self.asked.append(request.url.path)
        self.tokens.add(request.headers.get("authorization"))

    def app(self) -> Starlette:
        """QIDO-RS and WADO-RS under /web."""
        return Starlette(
            routes=[
                Route("/web/studies", self.studies),
                Route("/web/studies/{study}", self.study),
                Route("/web/studies/{study}/instances", self.listed),
            ]
        )


class Silence(Response):
    """Sends no more than what it begins with, and never ends."""

    def __init__(self, begins_with: bytes | None) -> None:
        super().__init__(media_type=CONTENT_TYPE)
        self.begins_with = begins_with
        self.begun = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.begins_with is not None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers[1:]})
            await send({"type": "http.response.body", "body": self.begins_with, "more_body": True})
        self.begun.set()
        await asyncio.sleep(3600)


def multipart(*images: Dataset, cut: int = 0) -> Response:
    body = body_of(*[part10(ds) for ds in images])
    return Response(body[: len(body) - cut], media_type=CONTENT_TYPE)


@pytest.fixture
def web() -> Iterator[tuple[Web, str]]:
    answers = Web()
    server = HttpServer(answers.app(), bind("127.0.0.1", 0))
    server.start()
    yield answers, f"http://127.0.0.1:{server.port}/web/"
    server.stop()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "objects") as running:
        yield running


def archive_at(url: str, listener: Listener) -> WebArchive:
    options = WebOptions(url, "a-token", "ECHO", 2**30, 20, 600, ssl.create_default_context())
    associations = listener.receiver._associations
    return WebArchive(options, listener.receiver, associations, listener.store, SystemClock())


def attempt(listener: Listener, url: str) -> tuple[str, str | None, str | None]:
    """State, reason and text of a request after one attempt."""
    archive = archive_at(url, listener)
    work: Fetching = fetching(listener, archive)
    fetch, _ = work.fetches.ask(Wish(STUDY, None, 0), work.clock.now())
    assert work.step()
    archive.close()
    after = work.fetches.get(fetch.id)
    assert after is not None
    code, text = after.problem or (None, None)
    return after.state, code, text


def test_all_of_it(listener: Listener, web: tuple[Web, str]) -> None:
    answers, url = web
    assert attempt(listener, url) == ("done", None, None)
    assert {row.sop_instance_uid for row in listener.rows(instances)} == {ds.SOPInstanceUID for ds in answers.images}
    assert {row.calling_ae_title for row in listener.rows(instances)} == {"WADO-RS"}
    assert answers.tokens == {"Bearer a-token"}
    listener.step_until(1)
    assert answers.asked.count(f"/web/studies/{STUDY}") == 1
    assert attempt(listener, url) == ("done", None, None)  # nothing is missing
    assert answers.asked.count(f"/web/studies/{STUDY}") == 1


def test_more_than_a_page(listener: Listener, web: tuple[Web, str]) -> None:
    answers, url = web
    answers.images = [image(STUDY) for _ in range(1001)]
    answers.retrieve = multipart(*answers.images[:2])
    state, code, text = attempt(listener, url)
    assert (state, code) == ("queued", "incomplete")
    assert "(999 of 1001)" in str(text)


@pytest.mark.parametrize(
    ("chosen", "state", "code", "kept"),
    [
        ({"query": PlainTextResponse("no", 500)}, "queued", "archive_refused", 0),
        ({"query": PlainTextResponse("no", 401)}, "queued", "archive_refused", 0),
        ({"query": PlainTextResponse("<html>")}, "queued", "archive_answer_invalid", 0),
        ({"query": JSONResponse({"a": 1})}, "queued", "archive_answer_invalid", 0),
        ({"query": JSONResponse([{"0020000D": {"vr": "UI", "Value": ["../x"]}}])}, "failed", "not_found", 0),
        ({"query": JSONResponse([{"0020000D": {"Value": "1.2"}}, {"0020000D": []}])}, "failed", "not_found", 0),
        ({"query": Response(status_code=204)}, "failed", "not_found", 0),
        ({"retrieve": PlainTextResponse("no", 503)}, "queued", "archive_refused", 0),
        ({"retrieve": JSONResponse([])}, "queued", "archive_answer_invalid", 0),
        ({"retrieve": multipart(image(STUDY), image(STUDY), cut=600)}, "queued", "archive_answer_invalid", 1),
        ({"retrieve": multipart(image())}, "queued", "incomplete", 0),  # of another study: refused here
        ({"retrieve": multipart(image(STUDY))}, "queued", "incomplete", 1),
    ],
)
def test_answers_that_are_no_help(
    listener: Listener, web: tuple[Web, str], chosen: dict[str, Any], state: str, code: str, kept: int
) -> None:
    answers, url = web
    for name, answer in chosen.items():
        setattr(answers, name, answer)
    assert attempt(listener, url)[:2] == (state, code)
    assert len(listener.rows(instances)) == kept
    assert listener.staged() == []


def test_nobody_is_there(listener: Listener) -> None:
    state, code, text = attempt(listener, f"http://127.0.0.1:{ports.free_port()}")
    assert (state, code, text) == ("queued", "archive_unreachable", "the archive cannot be reached (ConnectError)")


@pytest.mark.parametrize("begins_with", [None, body_of(part10(image(STUDY)))[:-100]], ids=["at once", "in the middle"])
@pytest.mark.parametrize("name", ["query", "retrieve"])
def test_a_stop_does_not_wait_for_the_archive(
    listener: Listener, web: tuple[Web, str], name: str, begins_with: bytes | None
) -> None:
    answers, url = web
    silence = Silence(begins_with)
    setattr(answers, name, silence)
    archive = archive_at(url, listener)
    work = fetching(listener, archive)
    fetch, _ = work.fetches.ask(Wish(STUDY, None, 0), work.clock.now())
    working = threading.Thread(target=work.step)
    working.start()
    assert silence.begun.wait(60)
    archive.interrupt()
    working.join(60)
    assert not working.is_alive()
    after = work.fetches.get(fetch.id)
    assert after is not None
    assert after.state == "queued"
    assert after.problem is not None
    assert after.problem[0] == "archive_unreachable"
    assert listener.staged() == []
    with pytest.raises(FetchFailed):  # nor begins anything
        archive.studies(Wish(STUDY, None, 0))
    archive.close()


def test_no_space_for_it(tmp_path: Path, web: tuple[Web, str]) -> None:
    free = [0]
    watermark = Watermark(100, 200)
    with listening(f"sqlite:///{tmp_path}/l", tmp_path / "o", watermark=watermark, free=lambda: free[0]) as listener:
        assert attempt(listener, web[1])[:2] == ("queued", "not_kept")
        assert [row.reason for row in listener.refusals()] == ["low_space"]
