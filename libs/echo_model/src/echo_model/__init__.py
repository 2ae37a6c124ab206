"""One-step block-diffusion vision-language model for chest X-ray reports.

Importing this package loads neither torch nor a model, takes no network and starts no thread: names are resolved when
they are first used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echo_model.errors import (
    CheckpointError,
    DeadlineExceeded,
    EchoModelError,
    EngineClosed,
    ImageError,
    PromptError,
    SettingsError,
)
from echo_model.settings import GenerationSettings

if TYPE_CHECKING:
    from echo_model.decoding import Generation, block_diffusion_generate
    from echo_model.engine import ReportEngine
    from echo_model.report import Report

__all__ = [
    "CheckpointError",
    "DeadlineExceeded",
    "EchoModelError",
    "EngineClosed",
    "Generation",
    "GenerationSettings",
    "ImageError",
    "PromptError",
    "Report",
    "ReportEngine",
    "SettingsError",
    "block_diffusion_generate",
    "demo_checkpoint_path",
]

_LAZY = {
    "ReportEngine": "echo_model.engine",
    "Report": "echo_model.report",
    "Generation": "echo_model.decoding",
    "block_diffusion_generate": "echo_model.decoding",
}


def demo_checkpoint_path() -> Path:
    """Folder of the bundled demo checkpoint: trained on drawn phantoms only, never to be used for a patient."""
    return Path(__file__).parent / "checkpoints" / "demo"


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
