"""Logs: JSON lines that a program can read and that carry no identifiers."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from pipeline import telemetry
from pipeline.telemetry import Thinned, configure_logging, study_ref


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    telemetry._log_identifiers = False


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_time_level_service_message_and_extras() -> None:
    stream = io.StringIO()
    configure_logging("example", "info", log_identifiers=False, stream=stream)
    logging.getLogger("a.b").warning("so %s", "many", extra={"count": 3})
    logging.getLogger("a.b").debug("too fine")
    [line] = lines(stream)
    assert str(line.pop("time")).endswith("+00:00")
    assert line == {"level": "warning", "service": "example", "logger": "a.b", "message": "so many", "count": 3}


def test_exceptions_show_type_and_place_and_no_text() -> None:
    stream = io.StringIO()
    configure_logging("example", "info", log_identifiers=False, stream=stream)
    try:
        raise ValueError("Doe^John")
    except ValueError:
        logging.getLogger().exception("failed")
    [line] = lines(stream)
    assert line["exception"] == "ValueError"
    assert "test_exceptions_show_type_and_place_and_no_text" in str(line["at"])
    assert "Doe" not in stream.getvalue()


def test_an_administrator_may_allow_identifiers() -> None:
    assert study_ref("1.2.3") == study_ref("1.2.3") != study_ref("1.2.4")
    assert "1.2.3" not in study_ref("1.2.3")
    stream = io.StringIO()
    configure_logging("example", "info", log_identifiers=True, stream=stream)
    assert study_ref("1.2.3") == "1.2.3"
    try:
        raise ValueError("Doe^John")
    except ValueError:
        logging.getLogger().exception("failed")
    assert lines(stream)[0]["exception_text"] == "Doe^John"


def test_chatty_libraries_are_kept_quiet() -> None:
    stream = io.StringIO()
    configure_logging("example", "debug", log_identifiers=False, stream=stream)
    logging.getLogger("pynetdicom.events").info("AE title and data set")
    logging.getLogger("httpx").info("GET /Patient?identifier=1")
    assert stream.getvalue() == ""


def test_the_kafka_client_does_not_repeat_itself() -> None:
    now = [0.0]
    thinned = Thinned(30.0, lambda: now[0])

    def said(name: str, text: str, *arguments: object) -> logging.LogRecord | None:
        record = logging.LogRecord(name, logging.ERROR, __file__, 1, text, arguments, None)
        return record if thinned.filter(record) else None

    assert said("kafka.client", "no broker %s", 1)
    assert [said("kafka.client", "no broker %s", number) for number in range(5)] == [None] * 5
    assert said("kafka.client", "another text")
    assert said("kafka.consumer", "no broker %s", 1)
    assert all(said("dispatcher", "no bus") for _ in range(3))
    now[0] = 31.0
    again = said("kafka.client", "no broker %s", 1)
    assert again is not None
    assert vars(again)["left_out"] == 5
    for number in range(2_000):  # texts that differ each time
        said("kafka.client", f"attempt {number}")
    assert len(thinned._last) <= 500
