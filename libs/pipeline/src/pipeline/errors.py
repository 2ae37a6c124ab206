"""Errors that services handle in the same way wherever they arise."""

from __future__ import annotations


class PipelineError(Exception):
    """Base of every error this package raises on purpose. Texts carry no patient data."""


class TransientError(PipelineError):
    """The world is not ready (server away, time-out, lock): the same call may work later, so nothing is given up."""


class BusUnavailable(TransientError):
    """The event bus did not acknowledge in time."""


class MessageTooLarge(PipelineError):
    """The bus takes no message of this size on its topic, now or later."""


class ObjectStoreUnavailable(TransientError):
    """The object store cannot be reached or has no space."""


class ObjectNotFound(PipelineError):
    """No object stands under that key."""


class InvalidEvent(PipelineError):
    """Bytes that are no event of a known type and version, or whose data breaks the schema.

    `code` is one of `not_json`, `not_cloudevents`, `unknown_type`, `schema_breach`, `too_large`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


def reason_of(error: BaseException) -> str:
    """What a log line may say of an error: our own texts as they are, of others (which may quote data) the type."""
    return str(error) if isinstance(error, PipelineError) else type(error).__name__
