"""JSON files of a checkpoint, each error naming the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from echo_model.errors import CheckpointError


def read_json(file: Path) -> dict[str, Any]:
    """The object that a file holds. Raises CheckpointError when it is missing, no JSON, or no object."""
    try:
        raw = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file.name} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{file.name} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file.name} holds no JSON object")
    return raw


def read_json_if_there(file: Path) -> dict[str, Any]:
    """Like `read_json`; an absent file is an empty object."""
    return read_json(file) if file.is_file() else {}
