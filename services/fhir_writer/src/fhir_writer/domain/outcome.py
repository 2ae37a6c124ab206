"""How an attempt to deliver can end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Result = Literal["created", "updated", "unchanged"]


@dataclass(frozen=True)
class Delivered:
    """The report stands in the EHR under this id and version."""

    resource_id: str
    resource_version: str
    result: Result


class DeliveryError(Exception):
    """Base: a reason code, a sentence without identifiers for a person, and what the server said."""

    def __init__(
        self, code: str, text: str, *, http_status: int | None = None, operation_outcome: str | None = None
    ) -> None:
        super().__init__(code)  # the texts may quote data: only the code may reach a log
        self.code = code
        self.text = text
        self.http_status = http_status
        self.operation_outcome = operation_outcome


class Refused(DeliveryError):
    """The same attempt would end the same way: a person must act."""


class PatientNotFound(Refused):
    """No Patient with the identifier yet; registration may be on its way."""


class Overtaken(Exception):
    """The attempt is no longer wanted: another process has taken the delivery over, or the schedule has changed."""


class Unavailable(DeliveryError):
    """The EHR does not take it now: tried again for ever. `retry_after_s` is what the server asked for."""

    def __init__(
        self,
        code: str,
        text: str,
        *,
        http_status: int | None = None,
        operation_outcome: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(code, text, http_status=http_status, operation_outcome=operation_outcome)
        self.retry_after_s = retry_after_s
