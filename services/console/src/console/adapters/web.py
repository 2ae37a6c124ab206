"""The web application: API, pages, static files, health."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from console.adapters import problems
from console.adapters.actions import Actions
from console.adapters.api import api_router
from console.adapters.image_service import ImageService
from console.adapters.live import ChangeFeed
from console.adapters.pages import Pages, page_router
from console.adapters.queries import Queries
from pipeline.http import Check, health_routes

_STATIC = Path(__file__).parents[1] / "static"


def make_app(
    queries: Queries,
    images: ImageService,
    feed: ChangeFeed,
    dicom_hint: str | None,
    checks: Mapping[str, Check],
    ready: threading.Event,
    stop: threading.Event,
    actions: Actions,
) -> FastAPI:
    """Everything that answers on the HTTP port."""
    app = FastAPI(
        title="Chest X-ray reporting console",
        description="Studies, their states and draft reports. Drafts are made by a model and verified by nobody.",
        version="1",
        openapi_url="/api/openapi.json",
        docs_url=None,  # its page loads scripts from the internet
        redoc_url=None,
        routes=health_routes(checks, ready),
    )
    pages = Pages(queries, actions, dicom_hint)
    problems.install(app, pages.error)
    app.include_router(api_router(queries, images, feed, stop))
    app.include_router(page_router(pages))
    app.mount("/static", StaticFiles(directory=_STATIC))
    return app
