"""The schemas are the contract: each has an example, a producer and a consumer, and a breach ends as a dead letter."""

from __future__ import annotations

import ast
import copy
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pipeline import events, schemas
from pipeline.bus import Message
from pipeline.clock import SystemClock
from pipeline.consume import EventConsumer, Inbox
from pipeline.database import Database
from pipeline.errors import InvalidEvent
from pipeline.events import Event
from pipeline.sql_bus import SqlBus

REPOSITORY = Path(__file__).parents[3]
EXAMPLES = sorted((REPOSITORY / "schemas" / "examples").glob("*.json"))
SECRET = "Müller^Käthe"


def example(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((REPOSITORY / "schemas" / "examples" / f"{name}.json").read_text())
    return document


def payload(document: object) -> bytes:
    return json.dumps(document).encode()


def test_constants_and_schemas_are_the_same_set() -> None:
    assert set(schemas.event_types()) == {*events.TOPICS, events.DEAD_LETTER}
    assert {path.stem for path in EXAMPLES} == set(schemas.event_types())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_events_and_survive_the_journey(path: Path) -> None:
    document = json.loads(path.read_text())
    event = Event.from_bytes(payload(document))
    assert event.type == path.stem
    assert json.loads(event.to_bytes()) == document


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_required_field_is_missed(path: Path) -> None:
    document = json.loads(path.read_text())
    schema = json.loads((REPOSITORY / "schemas" / "events" / path.name).read_text())
    assert schema["required"]
    for name in schema["required"]:
        broken = copy.deepcopy(document)
        del broken["data"][name]
        with pytest.raises(InvalidEvent) as caught:
            Event.from_bytes(payload(broken))
        assert caught.value.code == "schema_breach"


def test_additions_are_tolerated() -> None:
    document = example(events.STUDY_SKIPPED)
    document["data"]["added_later"] = 1
    document["extension"] = "x"
    assert Event.from_bytes(payload(document)).data["added_later"] == 1


def _broken(name: str, change: dict[str, Any], data_change: dict[str, Any]) -> bytes:
    document = example(name)
    document.update(change)
    document["data"].update(data_change)
    return payload(document)


BREACHES = {
    "unknown_version": (
        "unknown_type",
        _broken(events.STUDY_SKIPPED, {"type": "imaging.study.skipped.v2"}, {"reason": SECRET}),
    ),
    "unknown_noun": ("unknown_type", _broken(events.STUDY_SKIPPED, {"type": "imaging.film.burnt.v1"}, {})),
    "wrong_topic": ("unknown_type", payload(example(events.STUDY_OPENED))),
    "wrong_type": ("schema_breach", _broken(events.STUDY_SKIPPED, {}, {"study_version": SECRET})),
    "wrong_nested": (
        "schema_breach",
        _broken(events.STUDY_SKIPPED, {}, {"reason": {"code": SECRET, "text": "x"}}),
    ),
    "data_missing": ("schema_breach", _broken(events.STUDY_SKIPPED, {"data": {}}, {})),
    "no_envelope": ("not_cloudevents", payload({"patient": SECRET})),
    "wrong_specversion": ("not_cloudevents", _broken(events.STUDY_SKIPPED, {"specversion": SECRET}, {})),
    "no_time": ("not_cloudevents", _broken(events.STUDY_SKIPPED, {"time": SECRET}, {})),
    "leap_second": ("not_cloudevents", _broken(events.STUDY_SKIPPED, {"time": "2016-12-31T23:59:60Z"}, {})),
    "type_injection": ("not_cloudevents", _broken(events.STUDY_SKIPPED, {"type": "../../etc/passwd"}, {})),
    "text": ("not_json", SECRET.encode()),
    "empty": ("not_json", b""),
    "binary": ("not_json", b"\x00\xff\xfe DICM"),
    "brackets": ("not_json", b"[" * 200_000),
    "nan": ("not_json", payload(example(events.STUDY_SKIPPED)).replace(b'"study_version": 1', b'"study_version": NaN')),
    "list": ("not_cloudevents", b"[]"),
}


@pytest.mark.parametrize(("code", "value"), BREACHES.values(), ids=BREACHES.keys())
def test_a_breach_goes_to_the_dead_letters_with_the_reason(code: str, value: bytes, tmp_path: Path) -> None:
    bus = SqlBus(f"sqlite:///{tmp_path}/bus.sqlite3", partitions=1)
    database = Database(f"sqlite:///{tmp_path}/service.sqlite3")
    metadata = sa.MetaData()
    inbox = Inbox(metadata)
    metadata.create_all(database.engine)
    handled: list[Event] = []
    bus.producer().publish(
        [
            Message(events.STUDY_SKIPPED, "key", value),
            Message(events.STUDY_SKIPPED, "key", payload(example(events.STUDY_SKIPPED))),
        ]
    )
    consumer = EventConsumer(
        bus, "group", {events.STUDY_SKIPPED: lambda _, event: handled.append(event)}, database, inbox, SystemClock()
    )
    while bus.lag("group", [events.STUDY_SKIPPED]):
        consumer.step(threading.Event(), timeout_s=1)
    consumer.close()
    reader = bus.consumer("reader", [events.dead_letter_topic(events.STUDY_SKIPPED)])
    [record] = reader.poll(1)
    letter = Event.from_bytes(record.value)
    assert letter.data["error_code"] == code
    assert letter.data["attempts"] == 1
    assert SECRET not in letter.data["error_message"]
    assert SECRET.encode() not in letter.data["error_message"].encode()
    assert len(handled) == 1, "the good event behind it was handled"
    reader.close()
    bus.close()
    database.close()


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_error_texts_name_the_place_and_never_the_value(name: str) -> None:
    """Each field of each example in turn holds something that must not be quoted."""

    def breaks(document: Any, place: Any) -> None:
        for key in list(place):
            kept, place[key] = place[key], {SECRET: SECRET}
            if message := _refusal(document):
                texts.append(message)
            place[key] = kept
            if isinstance(kept, dict):
                breaks(document, kept)

    texts: list[str] = []
    document = example(name)
    breaks(document, document)
    assert len(texts) > 10, "most fields are checked"
    assert not [text for text in texts if "Müller" in text]


def _refusal(document: object) -> str | None:
    try:
        Event.from_bytes(payload(document))
    except InvalidEvent as error:
        return str(error)
    return None


def _uses(tree: ast.AST) -> tuple[set[str], set[str]]:
    """Names of event constants that a module makes events of, and those that it maps to handlers."""
    constants = {name for name in vars(events) if name.isupper()}
    made: set[str] = set()
    handled: set[str] = set()

    def names(node: ast.AST) -> set[str]:
        found = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        found |= {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
        return found & constants

    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for argument in (*node.args[:1], *(k.value for k in node.keywords if k.arg in ("type", "type_"))):
                if not isinstance(argument, ast.Call | ast.Dict):
                    made |= names(argument)
        if isinstance(node, ast.Dict):
            for key in node.keys:
                handled |= names(key) if key is not None else set()
        if isinstance(node, ast.DictComp):
            handled |= names(node.generators[0].iter)
    return made, handled


def test_every_schema_has_a_producer_and_a_consumer() -> None:
    values = {name: value for name, value in vars(events).items() if name.isupper() and isinstance(value, str)}
    produced: set[str] = set()
    consumed: set[str] = set()
    for path in sorted(REPOSITORY.glob("services/*/src/**/*.py")):
        made, handled = _uses(ast.parse(path.read_text(encoding="utf-8")))
        produced |= made
        consumed |= handled
    if "TOPICS" in consumed:
        consumed |= {name for name, value in values.items() if value in events.TOPICS}
    wanted = {name for name, value in values.items() if value in events.TOPICS}
    assert wanted <= produced, f"nobody produces {sorted(wanted - produced)}"
    assert wanted <= consumed, f"nobody consumes {sorted(wanted - consumed)}"


def test_the_linter_passes_and_finds_what_is_wrong(tmp_path: Path) -> None:
    script = REPOSITORY / "scripts" / "lint_schemas.py"
    assert subprocess.run([sys.executable, str(script)], check=False, capture_output=True).returncode == 0
    namespace: dict[str, Any] = {"__name__": "lint_schemas", "__file__": str(script)}
    exec(compile(script.read_text(), str(script), "exec"), namespace)  # a script, not a module of a package
    for folder in ("events", "examples"):
        (tmp_path / folder).mkdir()
    envelope = (REPOSITORY / "schemas" / "cloudevent.json").read_text()
    (tmp_path / "cloudevent.json").write_text(envelope)
    schema = {"type": "object", "properties": {"camelCase": {"type": "string"}}, "required": ["gone"]}
    (tmp_path / "events" / "imaging.study.skipped.v1.json").write_text(json.dumps(schema))
    document = example(events.STUDY_SKIPPED)
    (tmp_path / "examples" / "imaging.study.skipped.v1.json").write_text(json.dumps(document))
    (tmp_path / "examples" / "orphan.json").write_text("{}")
    count, problems = namespace["lint"](tmp_path)
    assert count == 2
    text = "\n".join(problems)
    for complaint in ("$schema", "$id", "title", "snake_case", "'gone'", "not in the schema", "orphan"):
        assert complaint in text, complaint
