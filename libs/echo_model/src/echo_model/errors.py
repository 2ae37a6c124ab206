"""Every error that the library raises on purpose. Texts name files, tensors and settings, never image content."""

from __future__ import annotations


class EchoModelError(Exception):
    """Base of all errors of this package."""


class ImageError(EchoModelError):
    """The image cannot be used: no pixels, wrong shape, not finite, too large, or no image at all.

    `code` is one of `not_an_image`, `wrong_rank`, `empty`, `not_finite`, `too_large`, `aspect_ratio`, `wrong_type`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class PromptError(EchoModelError):
    """The prompt cannot be built with this tokenizer."""


class CheckpointError(EchoModelError):
    """The checkpoint is refused. The text names the file or the tensor and what is wrong with it."""


class SettingsError(EchoModelError, ValueError):
    """A generation setting is out of range or does not fit the others."""


class DeadlineExceeded(EchoModelError):
    """The request's time ran out between two blocks; nothing of it is kept."""


class EngineClosed(EchoModelError):
    """The engine was closed; no request is accepted any more."""


class EngineError(EchoModelError):
    """The model failed on this request for a reason of its own; the cause is attached."""


class OutOfMemory(EngineError):
    """There was not enough memory for this request; others go on."""
