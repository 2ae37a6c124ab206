"""What a run was begun with, noted in its work folder: nobody's state is overwritten, and a run goes on as itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from echo_model.training.config import StageName, TrainConfig, TrainConfigError

_FREE: Final = {"threads", "out", "work", "loaders", "save_minutes", "check_minutes", "checked", "validated"}
"""Keys that change nothing of what is learnt."""


def claim(stage: StageName, config: TrainConfig, *, resume: bool, more: Mapping[str, Any] | None = None) -> None:
    """Note the run in its work folder. ``more``: what else must be the same when it goes on.

    Raises TrainConfigError for a run that is there already and is not to be taken up, and for one that was another.
    """
    note = config.work / f"{stage}.config.json"
    mine = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}
    mine |= dict(more or {})
    if note.exists():
        if not resume:
            raise TrainConfigError(
                f"key 'work': {config.work} holds a run of {stage} already; take it up with --resume, "
                "or choose another folder"
            )
        before = json.loads(note.read_text("utf-8"))
        for key, value in mine.items():
            if key not in _FREE and key in before and before[key] != value:
                raise TrainConfigError(f"key {key!r} was {before[key]!r} when this run began, now it is {value!r}")
    note.write_text(json.dumps(mine, indent=2) + "\n", encoding="utf-8")
