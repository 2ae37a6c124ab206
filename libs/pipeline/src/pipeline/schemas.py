"""The JSON Schemas of `schemas/`: the only contract between services, loaded once per process."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from referencing import Registry, Resource

from pipeline.errors import InvalidEvent

_PACKAGED = Path(__file__).parent / "_schemas"
_REPOSITORY = Path(__file__).parents[4] / "schemas"


def schema_root() -> Path:
    """The folder of the schemas: inside an installed wheel, or the repository's own in a checkout."""
    return _PACKAGED if _PACKAGED.is_dir() else _REPOSITORY


@cache
def event_types() -> tuple[str, ...]:
    """Every known event type with its version, which is also its topic: `imaging.study.completed.v1`, ..."""
    return tuple(sorted(path.stem for path in (schema_root() / "events").glob("*.json")))


@cache
def _registry() -> Registry[Any]:
    paths = [schema_root() / "cloudevent.json", *(schema_root() / "events").glob("*.json")]
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return Registry().with_resources([(d["$id"], Resource.from_contents(d)) for d in documents])


@cache
def _validator(relative_path: str) -> jsonschema.Draft202012Validator:
    document = json.loads((schema_root() / relative_path).read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(
        document, registry=_registry(), format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )


def _check(validator: jsonschema.Draft202012Validator, document: object, code: str) -> None:
    error = jsonschema.exceptions.best_match(validator.iter_errors(document))
    if error is not None:
        # The offending value may be patient data: name the place and the broken rule only.
        place = "/".join(str(part) for part in error.absolute_path) or "(root)"
        raise InvalidEvent(code, f"at {place}: breaks {error.validator} of {error.schema_path[-1]!s}")


def check_envelope(document: object) -> None:
    """Raise `InvalidEvent("not_cloudevents")` unless the document is our CloudEvents 1.0 envelope."""
    _check(_validator("cloudevent.json"), document, "not_cloudevents")


def check_data(event_type: str, data: object) -> None:
    """Raise `InvalidEvent` with `unknown_type` or `schema_breach` unless the data fits its type's schema."""
    if event_type not in event_types():
        raise InvalidEvent("unknown_type", f"no schema for {event_type[:80]!r}")
    _check(_validator(f"events/{event_type}.json"), data, "schema_breach")
