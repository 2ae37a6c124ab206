#!/usr/bin/env python3
"""Checks schemas/: run by `make check`. Prints what is wrong and exits 1, or says how many are fine.

Rules: valid JSON Schema 2020-12; `$id` and `title` match the path; names in snake_case; every object lists its
properties; every schema has a golden example that validates and has no property that the schema does not know.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema

ROOT = Path(__file__).resolve().parents[1] / "schemas"
BASE = "https://echo-cxr.invalid/schemas/"
EVENT_NAME = re.compile(r"^imaging\.[a-z]+(\.[a-z]+)?\.v[1-9][0-9]*$")
PROPERTY_NAME = re.compile(r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$")
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def objects(schema: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every subschema that has properties, with where it stands."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield place or "(root)", schema
        for key, value in schema.items():
            yield from objects(value, f"{place}/{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from objects(value, f"{place}/{index}")


def unknown_properties(schema: dict[str, Any], value: Any, place: str = "data") -> Iterator[str]:
    """Properties of the value that the schema does not list, however deep."""
    if isinstance(value, dict) and "properties" in schema:
        for name, inner in value.items():
            if name in schema["properties"]:
                yield from unknown_properties(schema["properties"][name], inner, f"{place}/{name}")
            else:
                yield f"{place}/{name}"
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, inner in enumerate(value):
            yield from unknown_properties(schema["items"], inner, f"{place}/{index}")


def check_schema(path: Path, root: Path) -> Iterator[str]:
    """What is wrong with one schema by itself."""
    relative = path.relative_to(root).as_posix()
    schema = json.loads(path.read_text(encoding="utf-8"))
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        yield f"{relative}: no valid JSON Schema: {error.message}"
        return
    if schema.get("$schema") != DIALECT:
        yield f"{relative}: $schema must be {DIALECT}"
    if schema.get("$id") != BASE + relative:
        yield f"{relative}: $id must be {BASE}{relative}"
    if not schema.get("description"):
        yield f"{relative}: has no description"
    for place, part in objects(schema):
        for name, inner in part["properties"].items():
            if not PROPERTY_NAME.match(name):
                yield f"{relative}: {place}: {name!r} is not snake_case"
            if not {"type", "const", "enum", "$ref", "anyOf", "oneOf"} & inner.keys():
                yield f"{relative}: {place}/{name}: says nothing of its type"
        missing = set(part.get("required", ())) - part["properties"].keys()
        if missing:
            yield f"{relative}: {place}: requires {sorted(missing)}, which it does not describe"


def check_event(path: Path, root: Path) -> Iterator[str]:
    """What is wrong with an event's schema and its example."""
    relative, name = path.relative_to(root).as_posix(), path.stem
    schema = json.loads(path.read_text(encoding="utf-8"))
    if not EVENT_NAME.match(name):
        yield f"{relative}: the name must be imaging.<noun>.<past participle>.v<number>.json"
    if schema.get("title") != name:
        yield f"{relative}: title must be {name}"
    example_path = root / "examples" / path.name
    if not example_path.is_file():
        yield f"{relative}: has no examples/{path.name}"
        return
    example = json.loads(example_path.read_text(encoding="utf-8"))
    if example.get("type") != name:
        yield f"examples/{path.name}: type must be {name}"
    envelope = json.loads((root / "cloudevent.json").read_text(encoding="utf-8"))
    for document, rules in ((example, envelope), (example.get("data"), schema)):
        validator = jsonschema.Draft202012Validator(
            rules, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        )
        for error in validator.iter_errors(document):
            yield f"examples/{path.name}: {error.json_path}: {error.message}"
    for unknown in (*unknown_properties(envelope, example, "example"), *unknown_properties(schema, example["data"])):
        yield f"examples/{path.name}: {unknown} is not in the schema"


def lint(root: Path) -> tuple[int, list[str]]:
    """(number of schemas, problems)."""
    events = sorted((root / "events").glob("*.json"))
    problems = list(check_schema(root / "cloudevent.json", root))
    for path in events:
        problems += check_schema(path, root)
        problems += check_event(path, root)
    names = {path.name for path in events}
    for example in sorted((root / "examples").glob("*.json")):
        if example.name not in names:
            problems.append(f"examples/{example.name}: there is no schema of that name")
    return len(events) + 1, problems


def main() -> int:
    """The command."""
    count, problems = lint(ROOT)
    for problem in problems:
        print(f"schemas/{problem}", file=sys.stderr)
    if not problems:
        print(f"{count} schemas are fine")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
