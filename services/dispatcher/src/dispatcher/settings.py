"""The dispatcher's settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from dispatcher.domain.eligibility import Policy
from pipeline.settings import BusSettings, CommonSettings, DatabaseSettings, ObjectStoreSettings


class Settings(CommonSettings, DatabaseSettings, BusSettings, ObjectStoreSettings):
    """Everything that can be set from outside."""

    broker_url: SecretStr = Field(
        description="Celery's broker: `redis://[:password@]host:port/db` or `redis+socket:///path`."
    )
    visibility_timeout_s: int = Field(
        900,
        ge=2,
        le=86400,
        description="Seconds after which a task that a dead worker held is delivered again; the same as the worker's.",
    )
    model_version: str = Field(
        "default",
        min_length=1,
        max_length=128,
        description="Part of the job's id: another value makes new jobs for studies that were reported before.",
    )
    modalities: Annotated[tuple[str, ...], NoDecode] = Field(
        ("CR", "DX"),
        description="Modalities that are reported, comma-separated; add SC where films come as secondary captures.",
    )
    missing_evidence: Literal["report", "skip"] = Field(
        "report", description="What happens to a study whose headers name neither body part nor view."
    )
    minimum_age_years: int = Field(
        18,
        ge=0,
        le=120,
        description="Younger patients' studies are skipped; 0 reports all. An unknown age does not skip.",
    )
    max_image_pixels: int = Field(
        64_000_000, ge=1, description="Images of more pixels (rows x columns) are not reported."
    )
    max_images: int = Field(
        2, ge=1, le=8, description="Most images of a study that the model sees: frontal first, then lateral."
    )
    stat_calling_ae_titles: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Calling AE titles, comma-separated, whose studies go before all others."
    )
    max_attempts: int = Field(
        3,
        ge=1,
        le=20,
        description="How often work on a study may start before it is given up; a study that kills "
        "its worker ends here.",
    )
    retry_backoff_s: float = Field(
        5.0, ge=0, le=3600, description="Pause before the second attempt; doubles with each further one."
    )
    queue_deadline_s: float = Field(
        120.0,
        ge=1,
        le=86400,
        description="A job not started for this long is looked for in the task queue, and queued "
        "again if it is not there.",
    )
    run_deadline_s: float = Field(
        300.0,
        ge=1,
        le=86400,
        description="A job that started and gave no answer for this long is tried again; longer than "
        "the worker's watchdog.",
    )
    sweep_interval_s: float = Field(2.0, ge=0.05, le=60, description="How often overdue jobs are looked for.")

    @field_validator("modalities", "stat_calling_ae_titles", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("broker_url")
    @classmethod
    def _known_broker(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("redis://", "rediss://", "redis+socket://")):
            raise ValueError("allowed are redis://host:port/db, rediss://... and redis+socket:///path")
        return value

    def policy(self) -> Policy:
        """The eligibility rules' part."""
        return Policy(
            modalities=frozenset(modality.upper() for modality in self.modalities),
            missing_evidence=self.missing_evidence,
            minimum_age_years=self.minimum_age_years,
            max_pixels=self.max_image_pixels,
            max_images=self.max_images,
            stat_calling_ae_titles=frozenset(self.stat_calling_ae_titles),
        )
