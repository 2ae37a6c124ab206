"""W3C trace context: one trace from the first object of a study to its FHIR id, carried in every event."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_current: ContextVar[str | None] = ContextVar("traceparent", default=None)


def new_traceparent() -> str:
    """A fresh `traceparent` (version 00, sampled), https://www.w3.org/TR/trace-context/."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def child_traceparent(parent: str) -> str:
    """Same trace, new span."""
    version, trace_id, _, flags = parent.split("-")
    return f"{version}-{trace_id}-{secrets.token_hex(8)}-{flags}"


def current_traceparent() -> str:
    """A child of the trace being handled, or a new trace when there is none."""
    parent = _current.get()
    return child_traceparent(parent) if parent else new_traceparent()


@contextmanager
def trace(traceparent: str) -> Iterator[None]:
    """Events made inside belong to this trace."""
    token = _current.set(traceparent)
    try:
        yield
    finally:
        _current.reset(token)
