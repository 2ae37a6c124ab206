"""A FHIR server over HTTP: one connection pool, time limits, and its answers sorted into the service's outcomes."""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from prometheus_client import Histogram

from fhir_writer.domain.codes import Json
from fhir_writer.domain.outcome import Refused, Unavailable
from pipeline.http import CLIENT_IDLE_S

log = logging.getLogger(__name__)

REQUESTS = Histogram("echo_fhir_request_seconds", "Requests to the FHIR server", ["kind"])
_FHIR_JSON = "application/fhir+json"
_FRESH = {"Cache-Control": "no-cache"}  # HAPI FHIR may answer a search from a cache of its own otherwise
_DIAGNOSTICS_LENGTH = 2000


class Conflict(Exception):
    """The server's resource is not what the request took it for (409, 412): read again."""


@dataclass(frozen=True)
class Answer:
    """Status and JSON object of an answer."""

    status: int
    body: Json
    headers: Mapping[str, str]


def diagnostics(body: Any) -> str | None:
    """An OperationOutcome in one shortened line, or None. It may quote what was sent: for events, never for logs."""
    if not isinstance(body, dict) or body.get("resourceType") != "OperationOutcome":
        return None
    lines = []
    for issue in body.get("issue") or ():
        words = issue.get("diagnostics") or (issue.get("details") or {}).get("text") or ""
        lines.append(f"{issue.get('severity', '?')}/{issue.get('code', '?')}: {words}")
    return "; ".join(lines)[:_DIAGNOSTICS_LENGTH] or None


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds of a Retry-After header: a number or an HTTP date (RFC 9110, 10.2.3); None for anything else."""
    if not value:
        return None
    text = value.strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())


class FhirHttp:
    """Requests to one base URL; thread-safe."""

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        user: str | None = None,
        password: str | None = None,
        ca_file: str | None = None,
        verify_tls: bool = True,
        timeout_s: float = 30.0,
        connections: int = 8,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        headers = {"Accept": _FHIR_JSON}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._client = httpx.Client(
            headers=headers,
            auth=httpx.BasicAuth(user, password or "") if user is not None else None,
            verify=_tls(ca_file, verify_tls),
            timeout=httpx.Timeout(timeout_s, connect=min(5.0, timeout_s)),
            limits=httpx.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=CLIENT_IDLE_S
            ),
            follow_redirects=False,  # a redirect would carry patient data and credentials somewhere else
            trust_env=False,  # no proxy and no .netrc that nobody wrote into this service's settings
        )

    def search(self, resource_type: str, params: Mapping[str, str]) -> list[Json]:
        """Resources of the type on the first page of a search."""
        try:
            answer = self._request("search", "GET", f"/{resource_type}", params=params, headers=_FRESH)
        except Conflict:  # of whatever it may be: nothing was to be changed
            raise Unavailable("ehr_error", "The FHIR server answered a search with a conflict.") from None
        entries = answer.body.get("entry") or ()
        return [
            entry["resource"]
            for entry in entries
            if entry.get("resource", {}).get("resourceType") == resource_type
            and entry.get("search", {}).get("mode", "match") == "match"
        ]

    def transaction(self, bundle: Json) -> list[Json]:
        """Send a transaction; the `response` of each entry, in the entries' order. Raises `Conflict` on 409 and 412."""
        answer = self._request(
            "transaction",
            "POST",
            "",
            json=bundle,
            # HAPI FHIR is not asked to repeat one that lost a race (X-Retry-On-Version-Conflict): what it repeats loses
            # the tags that were new, and a resource with a lost tag can never be changed again (8.8).
            headers={"Prefer": "return=minimal"},
        )
        responses = [entry.get("response", {}) for entry in answer.body.get("entry") or ()]
        if len(responses) != len(bundle["entry"]):
            raise Unavailable(
                "ehr_error", "The FHIR server's answer to the transaction is incomplete.", http_status=answer.status
            )
        return responses

    def metadata(self) -> Json:
        """The server's CapabilityStatement."""
        return self._request("metadata", "GET", "/metadata").body

    def _request(
        self,
        kind: str,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Json | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        sent = dict(headers or {})
        if json is not None:
            sent["Content-Type"] = _FHIR_JSON
        try:
            with REQUESTS.labels(kind=kind).time():
                response = self._client.request(method, self.base_url + path, params=params, json=json, headers=sent)
        except httpx.TimeoutException:
            raise Unavailable("ehr_timeout", "The FHIR server did not answer in time.") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            untrusted = "CERTIFICATE_VERIFY_FAILED" in str(error)
            why = "its certificate is not trusted" if untrusted else type(error).__name__
            raise Unavailable("ehr_unavailable", f"The FHIR server cannot be reached ({why}).") from None
        return _sorted(response)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _tls(ca_file: str | None, verify: bool) -> ssl.SSLContext | bool:
    if not verify:
        return False
    return ssl.create_default_context(cafile=ca_file) if ca_file else True


def _sorted(response: httpx.Response) -> Answer:
    """The answer, or the exception that says what its status means for a delivery."""
    status = response.status_code
    try:
        body = response.json()
    except ValueError:
        body = None
    if 200 <= status < 300:
        if not isinstance(body, dict):
            raise Unavailable(
                "ehr_error", "The FHIR server answered with something that is no FHIR JSON.", http_status=status
            )
        return Answer(status, body, response.headers)
    said = diagnostics(body)
    if status in (409, 412):
        raise Conflict
    if status in (401, 403):
        code = "ehr_unauthorized" if status == 401 else "ehr_forbidden"
        raise Refused(
            code, "The FHIR server refuses our credentials or rights.", http_status=status, operation_outcome=said
        )
    if status in (429, 503):
        raise Unavailable(
            "ehr_busy",
            "The FHIR server asks to come back later.",
            http_status=status,
            operation_outcome=said,
            retry_after_s=retry_after(response.headers.get("Retry-After"), datetime.now(UTC)),
        )
    if status in (404, 410):
        raise Unavailable(
            "ehr_not_found",
            "The FHIR server does not know the address or a resource it was asked for.",
            http_status=status,
            operation_outcome=said,
        )
    if status in (408, 425) or status >= 500 or status < 400:
        raise Unavailable(
            "ehr_error", f"The FHIR server answered with status {status}.", http_status=status, operation_outcome=said
        )
    raise Refused(
        "ehr_refused", "The FHIR server refused the report as invalid.", http_status=status, operation_outcome=said
    )
