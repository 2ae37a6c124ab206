"""Errors: `application/problem+json` for programs, a page for people."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from console.adapters.actions import NotDone
from console.adapters.pixels import NotShown
from console.adapters.queries import WrongCursor
from pipeline.database import is_transient
from pipeline.errors import ObjectNotFound

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
ErrorPage = Callable[[int, str, str], Response]
"""(status, title, text) -> the page."""


def problem(
    status: int,
    detail: str,
    *,
    code: str | None = None,
    errors: object = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A problem document (RFC 9457) of no special type."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    body |= {} if code is None else {"code": code}
    body |= {} if errors is None else {"errors": errors}
    return JSONResponse(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def install(app: FastAPI, page: ErrorPage) -> None:
    """Answer every error of the application."""

    def answer(request: Request, status: int, detail: str, code: str | None = None, errors: object = None) -> Response:
        if request.url.path.startswith("/api"):
            return problem(status, detail, code=code, errors=errors)
        return page(status, HTTPStatus(status).phrase, detail)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = answer(request, error.status_code, str(error.detail))
        response.headers.update(error.headers or {})
        return response

    async def wrong_request(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        # Where and what, not the value: it may be a patient's identifier.
        errors = [{"where": [str(part) for part in e["loc"]], "message": e["msg"]} for e in error.errors()]
        return answer(request, 422, "The request does not fit; see errors.", errors=errors)

    async def wrong_cursor(request: Request, error: Exception) -> Response:
        return answer(request, 422, str(error), code="wrong_cursor")

    async def not_shown(request: Request, error: Exception) -> Response:
        assert isinstance(error, NotShown)
        return answer(request, 422, str(error), code=error.code)

    async def not_done(request: Request, error: Exception) -> Response:
        assert isinstance(error, NotDone)
        return answer(request, error.status, str(error), code="not_done")

    async def object_gone(request: Request, _error: Exception) -> Response:
        return answer(request, 404, "The object is no longer in the object store.", code="object_not_found")

    async def unexpected(request: Request, error: Exception) -> Response:
        if is_transient(error):
            return answer(request, 503, "A part that this needs is not reachable; try again.", code="unavailable")
        log.error("request failed", exc_info=error)
        return answer(request, 500, "Something went wrong here; the log says what.")

    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
        HTTPException: http_error,
        RequestValidationError: wrong_request,
        WrongCursor: wrong_cursor,
        NotShown: not_shown,
        NotDone: not_done,
        ObjectNotFound: object_gone,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(Guard, on_error=unexpected)


class Guard:
    """Around everything: security headers on each answer, and an answer for errors that nobody expected.

    Not the handler of `Exception`, which would let the server log each outage of the database as a crash.
    """

    def __init__(self, app: ASGIApp, on_error: Callable[[Request, Exception], Awaitable[Response]]) -> None:
        self._app = app
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, guarded)
        except Exception as error:
            if started:
                raise
            response = await self._on_error(Request(scope), error)
            await response(scope, receive, guarded)


_HEADERS = {
    # Everything comes from here: no script, style, picture or frame of anyone else, and none inside the markup.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with `no-referrer` browsers would not tell the origin of our own buttons either
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Patient data: not kept by the browser or by anything in between, unless an answer says otherwise.
    "cache-control": "no-store",
}
