"""Logs as JSON lines without identifiers, and the Prometheus metrics that every service has."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

from prometheus_client import Counter

EVENTS_CONSUMED = Counter("echo_events_consumed_total", "Events handled, duplicates included", ["group", "type"])
EVENTS_PUBLISHED = Counter("echo_events_published_total", "Messages acknowledged by the bus", ["topic"])
EVENTS_SET_ASIDE = Counter("echo_events_set_aside_total", "Outbox events larger than their topic allows", ["topic"])
DEAD_LETTERS = Counter("echo_dead_letters_total", "Events given up", ["group", "topic", "code"])

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_CHATTY = ("kafka", "pynetdicom", "httpx", "httpcore", "uvicorn", "alembic", "botocore", "aiobotocore", "fsspec")
"""Their INFO and DEBUG lines carry AE titles, URLs with search parameters, and data set content."""
_MOST_LINES = 500
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


class Thinned(logging.Filter):
    """Lets the same line of the Kafka client through once in `seconds`; the next one says how many were left out.

    While brokers are away its threads repeat themselves a hundred times a minute.
    """

    def __init__(self, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[tuple[str, str], tuple[float, int]] = {}  # when it was let through, left out since

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if record.name.split(".", 1)[0] != "kafka":
            return True
        key, now = (record.name, str(record.msg)), self._clock()
        with self._lock:
            last, left_out = self._last.get(key, (None, 0))
            if last is not None and now - last < self._seconds:
                self._last[key] = (last, left_out + 1)
                return False
            if len(self._last) >= _MOST_LINES:  # texts that are never the same must not fill the memory
                self._last.clear()
            self._last[key] = (now, 0)
        if left_out:
            record.left_out = left_out
        return True


def configure_logging(service: str, level: str, *, log_identifiers: bool, stream: TextIO | None = None) -> None:
    """Send all logging of the process to one JSON stream (standard error unless given)."""
    global _log_identifiers
    _log_identifiers = log_identifiers
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    handler.addFilter(Thinned())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
