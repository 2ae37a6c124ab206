"""The worker's settings, and the order that its time limits must keep."""

from __future__ import annotations

import itertools
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from pipeline.settings import BusSettings, CommonSettings, ObjectStoreSettings

DRAIN_MARGIN_S = 8.0
"""Kept back from the grace period, to give tasks back before the process is killed."""


class Settings(CommonSettings, BusSettings, ObjectStoreSettings):
    """Everything that can be set from outside."""

    broker_url: SecretStr = Field(
        description="Celery's broker: `redis://[:password@]host:port/db` or `redis+socket:///path`."
    )
    model: str = Field(
        "demo",
        min_length=1,
        description="Checkpoint folder, or `demo` for the bundled model that was trained on drawn phantoms only.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the model runs.")
    torch_threads: int = Field(0, ge=0, le=256, description="CPU threads of the model; 0 leaves the choice to torch.")
    concurrency: int = Field(
        4, ge=1, le=64, description="Studies at work at the same time; they share the one model of the process."
    )
    decode_parallel: int = Field(2, ge=1, le=16, description="Images decoded at the same time; bounds memory.")
    max_image_pixels: int = Field(
        64_000_000, ge=1, description="Images of more pixels (rows x columns) are refused before they are decoded."
    )
    max_object_bytes: int = Field(
        512 * 2**20, ge=2**20, description="Objects larger than this, or that inflate to more, are refused."
    )
    request_deadline_s: float = Field(
        120.0, gt=0, le=3600, description="Time for one study from the start of work; then it fails and others go on."
    )
    watchdog_s: float = Field(
        180.0, gt=0, le=7200, description="The process ends when one study or the model gave no sign for this long."
    )
    termination_grace_s: float = Field(
        300.0, gt=0, le=14400, description="Time between SIGTERM and SIGKILL, as the container's orchestrator sets it."
    )
    visibility_timeout_s: int = Field(
        900, ge=2, le=86400, description="Seconds after which a task that a dead worker held is delivered again."
    )

    @field_validator("broker_url")
    @classmethod
    def _known_broker(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("redis://", "rediss://", "redis+socket://")):
            raise ValueError("allowed are redis://host:port/db, rediss://... and redis+socket:///path")
        return value

    @model_validator(mode="after")
    def _limits_in_order(self) -> Settings:
        check_time_limits(
            self.request_deadline_s,
            self.watchdog_s,
            self.termination_grace_s - DRAIN_MARGIN_S,
            self.visibility_timeout_s,
        )
        return self


def check_time_limits(deadline_s: float, watchdog_s: float, drain_s: float, visibility_timeout_s: float) -> None:
    """Raise `ValueError` unless each limit is shorter than the next.

    A deadline behind the watchdog would end the process for one slow study; a watchdog behind the grace period would
    let a hung model be killed while draining; a visibility timeout shorter than any of them starts a task a second
    time while the first still runs.
    """
    limits = {
        "ECHO_REQUEST_DEADLINE_S": deadline_s,
        "ECHO_WATCHDOG_S": watchdog_s,
        f"ECHO_TERMINATION_GRACE_S less {DRAIN_MARGIN_S:.0f}": drain_s,
        "ECHO_VISIBILITY_TIMEOUT_S": float(visibility_timeout_s),
    }
    values = list(limits.values())
    if any(first >= second for first, second in itertools.pairwise(values)):
        shown = " < ".join(f"{name} ({value:g})" for name, value in limits.items())
        raise ValueError(f"the time limits must keep this order: {shown}")
