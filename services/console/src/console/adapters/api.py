"""The REST API under `/api`."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query, Request
from pydantic import AfterValidator, AwareDatetime
from starlette.responses import Response, StreamingResponse

from console.adapters.image_service import ImageService
from console.adapters.live import ChangeFeed, Listeners, stream
from console.adapters.models import (
    DeadLetterOut,
    DeadLetterPage,
    Problem,
    RefusalOut,
    RefusalPage,
    StudyDetail,
    StudyItem,
    StudyPage,
    study_detail,
)
from console.adapters.problems import MEDIA_TYPE
from console.adapters.queries import Queries, RefusalFilter, StudyFilter
from console.domain.state import State


def _in_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("the time is before the year 1 or after 9999 in UTC") from error


NO_NUL = r"^[^\x00]*$"
"""What PostgreSQL can compare with its texts."""
Uid = Annotated[str, Path(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64)]
Cursor = Annotated[str | None, Query(max_length=256, description="`next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=200)]
Word = Annotated[str | None, Query(max_length=64, pattern=NO_NUL)]
Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]

_PROBLEM = {"model": Problem, "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}


def _answers(*statuses: int) -> dict[int | str, dict[str, object]]:
    words = {404: "Unknown here", 422: "The request does not fit", 503: "Not reachable now"}
    return {status: {"description": words[status], **_PROBLEM} for status in statuses}


def api_router(queries: Queries, images: ImageService, feed: ChangeFeed, stop: threading.Event) -> APIRouter:
    """All routes of the API."""
    router = APIRouter(prefix="/api")
    listeners = Listeners()

    @router.get("/studies", responses=_answers(422, 503))
    def studies(
        accession: Word = None,
        patient_id: Word = None,
        state: State | None = None,
        since: Annotated[Moment | None, Query(description="Received at this time or later.")] = None,
        cursor: Cursor = None,
        limit: Limit = 50,
    ) -> StudyPage:
        """Studies, newest first. Accession number and patient id match as a whole."""
        wanted = StudyFilter(accession or None, patient_id or None, state, since)
        page = queries.studies(wanted, cursor, limit)
        return StudyPage(items=[StudyItem.of_row(row) for row in page.rows], next=page.next)

    @router.get("/studies/{study_instance_uid}", responses=_answers(404, 422, 503))
    def study(study_instance_uid: Uid) -> StudyDetail:
        """One study: state with its reason, versions, timeline, draft report, where it was delivered."""
        detail = study_detail(*queries.study(study_instance_uid))
        if detail is None:
            raise HTTPException(404, "No study with this UID has been received.")
        return detail

    @router.get(
        "/studies/{study_instance_uid}/images/{sop_instance_uid}.png",
        response_class=Response,
        responses={
            200: {
                "description": "The first frame",
                "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
            },
            304: {"description": "Not changed"},
            **_answers(404, 422, 503),
        },
    )
    def image(study_instance_uid: Uid, sop_instance_uid: Uid, request: Request) -> Response:
        """An image of the study, with its own window, at most 1024 pixels a side."""
        found = queries.image(study_instance_uid, sop_instance_uid)
        if found is None:
            raise HTTPException(404, "The study has no such object.")
        headers = {"etag": images.etag(found), "cache-control": "private, max-age=86400"}
        if headers["etag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(images.png(found), media_type="image/png", headers=headers)

    @router.get("/dead-letters", responses=_answers(422, 503))
    def dead_letters(cursor: Cursor = None, limit: Limit = 50) -> DeadLetterPage:
        """Events that consumers gave up, newest first."""
        page = queries.dead_letters(cursor, limit)
        return DeadLetterPage(items=[DeadLetterOut(**row) for row in page.rows], next=page.next)

    @router.get("/refusals", responses=_answers(422, 503))
    def refusals(
        calling_ae_title: Annotated[str | None, Query(max_length=16, pattern=NO_NUL)] = None,
        reason: Annotated[str | None, Query(max_length=64, pattern=NO_NUL, description="Reason code.")] = None,
        since: Annotated[Moment | None, Query(description="At this time or later.")] = None,
        until: Annotated[Moment | None, Query(description="Before this time.")] = None,
        cursor: Cursor = None,
        limit: Limit = 50,
    ) -> RefusalPage:
        """What senders were refused by the DICOM listener, and why, newest first."""
        wanted = RefusalFilter(calling_ae_title or None, reason or None, since, until)
        page = queries.refusals(wanted, cursor, limit)
        return RefusalPage(items=[RefusalOut.of_row(row) for row in page.rows], next=page.next)

    @router.get(
        "/events",
        response_class=Response,
        responses={
            200: {"description": "Server-sent events, `study` for each change", "content": {"text/event-stream": {}}},
            **_answers(503),
        },
    )
    async def events() -> Response:
        """Changes as they happen, as server-sent events: study UID, accession number, state, version."""
        if listeners.count >= listeners.limit:
            raise HTTPException(503, "Too many pages are listening.", headers={"retry-after": "30"})
        return StreamingResponse(
            stream(feed, listeners, stop), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
        )

    @router.get("/{path:path}", include_in_schema=False)
    def nothing(path: str) -> None:
        """Everything else under `/api`."""
        raise HTTPException(404, "There is no such resource.")

    return router
