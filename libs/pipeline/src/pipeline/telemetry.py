"""Logs as JSON lines without identifiers, and the Prometheus metrics that every service has."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import TextIO

from prometheus_client import Counter

EVENTS_CONSUMED = Counter("echo_events_consumed_total", "Events handled, duplicates included", ["group", "type"])
EVENTS_PUBLISHED = Counter("echo_events_published_total", "Messages acknowledged by the bus", ["topic"])
DEAD_LETTERS = Counter("echo_dead_letters_total", "Events given up", ["group", "topic", "code"])

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_CHATTY = ("kafka", "pynetdicom", "httpx", "httpcore", "uvicorn", "alembic", "botocore", "aiobotocore", "fsspec")
"""Their INFO and DEBUG lines carry AE titles, URLs with search parameters, and data set content."""
_log_identifiers = False


def study_ref(identifier: str) -> str:
    """How logs name a study, accession or patient: a short hash, or the identifier itself when a setting allows it.

    The hash joins log lines of one study; it is no protection against someone who can guess identifiers.
    """
    return identifier if _log_identifiers else hashlib.sha256(identifier.encode()).hexdigest()[:12]


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the `extra` fields."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({k: v for k, v in vars(record).items() if k not in _STANDARD})
        if record.exc_info and record.exc_info[0] is not None:
            # Exception texts of libraries may quote data (a DICOM value, a database row): keep type and place only.
            frames = traceback.extract_tb(record.exc_info[2])[-6:]
            line["exception"] = record.exc_info[0].__name__
            line["at"] = [f"{frame.name} {frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in frames]
            if _log_identifiers:
                line["exception_text"] = str(record.exc_info[1])
        return json.dumps(line, default=str, ensure_ascii=False)


def configure_logging(service: str, level: str, *, log_identifiers: bool, stream: TextIO | None = None) -> None:
    """Send all logging of the process to one JSON stream (standard error unless given)."""
    global _log_identifiers
    _log_identifiers = log_identifiers
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
