"""One HTTP port for all: forwards to the children, and joins their health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterable, Mapping

import httpx
from prometheus_client import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization"}
    | {"te", "trailers", "transfer-encoding", "upgrade", "host"}
)
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class Gateway:
    """`routes` maps a path prefix to the base URL of the child that answers for it; the longest prefix wins.

    `services` maps each service's name to the base URL of its health and metrics.
    """

    def __init__(self, routes: Mapping[str, str], services: Mapping[str, str], ready: threading.Event) -> None:
        self._routes = sorted(routes.items(), key=lambda item: -len(item[0]))
        self._services = dict(services)
        self._ready = ready
        # Connections are not kept: a child may end an idle one in the moment in which it is used again.
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=0)
        # No time-out for reading: the console's event stream stays open. Children are local and supervised.
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(10.0, read=None), limits=limits)
        self._health = httpx.AsyncClient(timeout=5.0, limits=limits)

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
                Route("/{path:path}", self._forward, methods=_METHODS),
            ],
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async with self._client, self._health:
            yield

    async def _healthz(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ask(self, path: str) -> dict[str, httpx.Response | None]:
        async def one(url: str) -> httpx.Response | None:
            try:
                return await self._health.get(url + path)
            except httpx.HTTPError:
                return None

        answers = await asyncio.gather(*(one(url) for url in self._services.values()))
        return dict(zip(self._services, answers, strict=True))

    async def _readyz(self, _request: Request) -> Response:
        answers = await self._ask("/readyz")
        states = {
            name: "unreachable" if answer is None else "ok" if answer.status_code == 200 else "not ready"
            for name, answer in answers.items()
        }
        good = self._ready.is_set() and all(state == "ok" for state in states.values())
        return JSONResponse(
            {"status": "ready" if good else "not ready", "checks": states}, status_code=200 if good else 503
        )

    async def _metrics(self, _request: Request) -> Response:
        answers = await self._ask("/metrics")
        texts = {name: answer.text for name, answer in answers.items() if answer is not None and answer.is_success}
        return Response(merge_metrics(texts), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _forward(self, request: Request) -> Response:
        path = request.url.path
        base = next(
            base for prefix, base in self._routes if path == prefix or path.startswith(prefix.rstrip("/") + "/")
        )
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP]
        headers.append(("x-forwarded-host", request.headers.get("host", "")))
        upstream = self._client.build_request(
            request.method,
            httpx.URL(base).copy_with(raw_path=request.scope["raw_path"] + _query(request)),
            headers=headers,
            content=await request.body(),
        )
        try:
            answer = await self._client.send(upstream, stream=True)
        except httpx.HTTPError as error:
            return JSONResponse(
                {
                    "type": "about:blank",
                    "title": "Bad Gateway",
                    "status": 502,
                    "detail": f"the part that answers here is starting or down ({type(error).__name__})",
                },
                status_code=502,
                media_type="application/problem+json",
            )

        async def body() -> AsyncIterator[bytes]:
            try:
                async for chunk in answer.aiter_raw():
                    yield chunk
            finally:
                await answer.aclose()

        response = StreamingResponse(body(), status_code=answer.status_code)
        response.raw_headers = [(k.lower(), v) for k, v in answer.headers.raw if k.decode().lower() not in _HOP_BY_HOP]
        return response


def _query(request: Request) -> bytes:
    query: bytes = request.scope["query_string"]
    return b"?" + query if query else b""


class _Families:
    """A prometheus_client collector over parsed families."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> list[Metric]:
        return self._families


def merge_metrics(texts: Mapping[str, str]) -> bytes:
    """One Prometheus exposition out of several; each sample gets the label `service`."""
    merged: dict[str, Metric] = {}
    for service, text in texts.items():
        for family in text_string_to_metric_families(text):
            target = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                target.samples.append(sample._replace(labels={**sample.labels, "service": service}))
    return generate_latest(_Families(merged.values()))
