"""`/v1/held`, `/v1/jobs`, `/v1/dead-letters`, `/v1/pause`: what waits for a person, and what a person does with it.

For operators, on a network that only they and the other services reach.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from dispatcher.desk import MOST, Desk, NotNow, Unknown
from pipeline.database import is_transient
from pipeline.http import from_another_site


def _problem(status: int, detail: str) -> Response:
    body = {"type": "about:blank", "title": detail, "status": status}
    return JSONResponse(body, status_code=status, media_type="application/problem+json")


def operation_routes(desk: Desk) -> list[BaseRoute]:
    """GET lists with `?limit=`; POST acts and answers 202, 404 for what is unknown, 409 for what cannot be done now."""

    def listed(path: str, ask: Callable[[int], list[dict[str, Any]]]) -> Route:
        async def answer(request: Request) -> Response:
            limit = request.query_params.get("limit", "100")
            if not limit.isdigit() or not 1 <= int(limit) <= MOST:
                return _problem(400, f"limit must be a number from 1 to {MOST}")
            return await _guarded(lambda: JSONResponse({"items": ask(int(limit))}))

        return Route(path, answer, methods=["GET"])

    def act(path: str, do: Callable[[str], None]) -> Route:
        async def answer(request: Request) -> Response:
            key = request.path_params["key"]

            def done() -> Response:
                do(key)
                return JSONResponse({"done": True}, status_code=202)

            return await _guarded(done, request)

        return Route(path, answer, methods=["POST"])

    async def pause(request: Request) -> Response:
        try:
            reason = str(json.loads(await request.body() or b"{}")["reason"]).strip()[:200]
        except (ValueError, TypeError, KeyError):
            reason = ""
        if not reason:
            return _problem(400, 'say why: {"reason": "..."}')

        def done() -> Response:
            desk.pause(reason)
            return JSONResponse(desk.paused(), status_code=202)

        return await _guarded(done, request)

    async def resume(request: Request) -> Response:
        def done() -> Response:
            desk.resume()
            return JSONResponse({"done": True}, status_code=202)

        return await _guarded(done, request)

    async def paused(_request: Request) -> Response:
        return await _guarded(lambda: JSONResponse({"paused": desk.paused()}))

    return [
        listed("/v1/held", desk.held),
        act("/v1/held/{key}/release", desk.release),
        act("/v1/held/{key}/decline", desk.decline),
        listed("/v1/jobs/failed", desk.failed),
        act("/v1/jobs/{key}/replay", desk.replay),
        act("/v1/jobs/{key}/discard", desk.discard),
        act("/v1/jobs/{key}/expedite", desk.expedite),
        listed("/v1/dead-letters", desk.letters),
        act("/v1/dead-letters/{key}/replay", desk.replay_letter),
        act("/v1/dead-letters/{key}/discard", desk.discard_letter),
        Route("/v1/pause", paused, methods=["GET"]),
        Route("/v1/pause", pause, methods=["POST"]),
        Route("/v1/pause", resume, methods=["DELETE"]),
    ]


async def _guarded(answer: Callable[[], Response], change: Request | None = None) -> Response:
    if change is not None and from_another_site(change.headers):
        return _problem(403, "requests from pages of other sites are refused")
    try:
        return await run_in_threadpool(answer)
    except Unknown as error:
        return _problem(404, str(error))
    except NotNow as error:
        return _problem(409, str(error))
    except Exception as error:
        if not is_transient(error):
            raise
        return _problem(503, "the database cannot be reached; try again")
