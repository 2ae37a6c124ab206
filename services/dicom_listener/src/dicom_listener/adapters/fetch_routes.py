"""`/v1/fetch`: ask for a study and its priors, and see how that stands. For operators and the other services."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, get_args

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from dicom_listener.domain.uids import is_uid
from dicom_listener.handlers.fetch import Fetch, Fetches, State, Wish
from pipeline.clock import Clock, iso
from pipeline.database import is_transient
from pipeline.http import from_another_site

MOST_PRIORS = 20
_MOST_LISTED = 500
_ACCESSION = re.compile(r"[^\x00-\x1f\x7f\\*?]{1,64}")  # `*` and `?` would ask for more than one


class _WrongWish(Exception):
    """The body of a request cannot be taken; says why."""


def fetch_routes(fetches: Fetches, clock: Clock, wake: Callable[[], None], *, is_on: bool) -> list[BaseRoute]:
    """POST answers 202 with the request, 200 if the same one waits already; 501 where no archive is set."""

    async def ask(request: Request) -> Response:
        if from_another_site(request.headers):
            return _problem(403, "requests from pages of other sites are refused")
        if not is_on:
            return _problem(501, "no archive is set: ECHO_FETCH_AE_TITLE or ECHO_FETCH_DICOMWEB_URL")
        try:
            wish = _wish(await request.body())
        except _WrongWish as wrong:
            return _problem(400, str(wrong))

        def written() -> Response:
            fetch, is_new = fetches.ask(wish, clock.now())
            wake()
            return JSONResponse(shown(fetch), 202 if is_new else 200, {"Location": f"/v1/fetch/{fetch.id}"})

        return await _guarded(written)

    async def one(request: Request) -> Response:
        def found() -> Response:
            fetch = fetches.get(request.path_params["id"])
            return _problem(404, "no such request") if fetch is None else JSONResponse(shown(fetch))

        return await _guarded(found)

    async def listed(request: Request) -> Response:
        limit, state = request.query_params.get("limit", "100"), request.query_params.get("state")
        if not limit.isdigit() or not 1 <= int(limit) <= _MOST_LISTED:
            return _problem(400, f"limit must be a number from 1 to {_MOST_LISTED}")
        if state is not None and state not in get_args(State):
            return _problem(400, f"state must be one of {', '.join(get_args(State))}")
        chosen: State | None = state  # type: ignore[assignment]  # checked above
        return await _guarded(
            lambda: JSONResponse({"items": [shown(fetch) for fetch in fetches.latest(chosen, int(limit))]})
        )

    return [
        Route("/v1/fetch", ask, methods=["POST"]),
        Route("/v1/fetch", listed, methods=["GET"]),
        Route("/v1/fetch/{id}", one, methods=["GET"]),
    ]


def _wish(body: bytes) -> Wish:
    try:
        asked = json.loads(body)
    except ValueError:
        raise _WrongWish("the body must be JSON") from None
    if not isinstance(asked, dict) or asked.keys() - {"study_instance_uid", "accession_number", "priors"}:
        raise _WrongWish("only study_instance_uid, accession_number and priors can be said")
    uid, accession, priors = asked.get("study_instance_uid"), asked.get("accession_number"), asked.get("priors", 0)
    if (uid is None) == (accession is None):
        raise _WrongWish("say either study_instance_uid or accession_number")
    if uid is not None and not (isinstance(uid, str) and is_uid(uid)):
        raise _WrongWish("study_instance_uid must be a UID")
    if accession is not None:
        accession = accession.strip() if isinstance(accession, str) else ""
        if not _ACCESSION.fullmatch(accession):
            raise _WrongWish("accession_number must be 1 to 64 characters, none of them * ? or a backslash")
    if not isinstance(priors, int) or isinstance(priors, bool) or not 0 <= priors <= MOST_PRIORS:
        raise _WrongWish(f"priors must be a number from 0 to {MOST_PRIORS}")
    return Wish(uid, accession, priors)


def shown(fetch: Fetch) -> dict[str, Any]:
    """A request as people see it."""
    return {
        "id": fetch.id,
        "study_instance_uid": fetch.wish.study_instance_uid,
        "accession_number": fetch.wish.accession_number,
        "priors": fetch.wish.priors,
        "state": fetch.state,
        "attempts": fetch.attempts,
        "reason": None if fetch.problem is None else {"code": fetch.problem[0], "text": fetch.problem[1]},
        "studies": [vars(share) for share in fetch.shares],
        "created_at": iso(fetch.created_at),
        "updated_at": iso(fetch.updated_at),
        "next_attempt_at": None if fetch.next_attempt_at is None else iso(fetch.next_attempt_at),
    }


def _problem(status: int, detail: str) -> Response:
    body = {"type": "about:blank", "title": detail, "status": status}
    return JSONResponse(body, status_code=status, media_type="application/problem+json")


async def _guarded(answer: Callable[[], Response]) -> Response:
    try:
        return await run_in_threadpool(answer)
    except Exception as error:
        if not is_transient(error):
            raise
        return _problem(503, "the database cannot be reached; try again")
