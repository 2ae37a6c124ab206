"""`/v1/deliveries`: what is parked and why, and the way to have it tried again."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from fhir_writer.adapters.schedule import STATES, SqlDeliveries
from pipeline.clock import Clock, iso
from pipeline.http import from_another_site

_MOST = 500
_FOREIGN = "requests from pages of other sites are refused"


def _problem(status: int, title: str) -> Response:
    return JSONResponse(
        {"type": "about:blank", "title": title, "status": status},
        status_code=status,
        media_type="application/problem+json",
    )


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    def text(value: datetime | None) -> str | None:
        return None if value is None else iso(value if value.tzinfo else value.replace(tzinfo=UTC))

    reason = {"code": row["reason_code"], "text": row["reason_text"]} if row["reason_code"] else None
    fhir = (
        {
            "resource": f"DiagnosticReport/{row['fhir_id']}",
            "version_id": row["fhir_version"],
            "study_version": row["delivered_version"],
        }
        if row["fhir_id"]
        else None
    )
    return {
        "study_instance_uid": row["study_instance_uid"],
        "study_version": row["study_version"],
        "job_id": row["job_id"],
        "state": row["state"],
        "reason": reason,
        "http_status": row["http_status"],
        "operation_outcome": row["operation_outcome"],
        "attempts": row["attempts"],
        "next_attempt_at": text(row["next_attempt_at"]),
        "updated_at": text(row["updated_at"]),
        "fhir": fhir,
    }


def delivery_routes(deliveries: SqlDeliveries, clock: Clock, wakeup: threading.Event) -> list[BaseRoute]:
    """GET `/v1/deliveries?state=&limit=`, POST `/v1/deliveries/{uid}/replay`, POST `/v1/deliveries/replay?reason=`."""

    async def listed(request: Request) -> Response:
        state = request.query_params.get("state")
        if state is not None and state not in STATES:
            return _problem(400, f"state must be one of {', '.join(STATES)}")
        limit = request.query_params.get("limit", "100")
        if not limit.isdigit() or not 1 <= int(limit) <= _MOST:
            return _problem(400, f"limit must be a number from 1 to {_MOST}")
        rows = await run_in_threadpool(deliveries.listed, state, int(limit))
        return JSONResponse({"items": [_shown(row) for row in rows]})

    async def replay_one(request: Request) -> Response:
        if from_another_site(request.headers):
            return _problem(403, _FOREIGN)
        count = await run_in_threadpool(deliveries.replay, clock.now(), request.path_params["uid"])
        wakeup.set()
        return (
            JSONResponse({"replayed": count}, status_code=202)
            if count
            else _problem(404, "no such delivery, or its draft was withdrawn")
        )

    async def replay_reason(request: Request) -> Response:
        if from_another_site(request.headers):
            return _problem(403, _FOREIGN)
        reason = request.query_params.get("reason")
        if not reason:
            return _problem(400, "reason is missing: the code of the parked deliveries to try again")
        count = await run_in_threadpool(deliveries.replay, clock.now(), None, reason)
        wakeup.set()
        return JSONResponse({"replayed": count}, status_code=202)

    return [
        Route("/v1/deliveries", listed, methods=["GET"]),
        Route("/v1/deliveries/replay", replay_reason, methods=["POST"]),
        Route("/v1/deliveries/{uid}/replay", replay_one, methods=["POST"]),
    ]
