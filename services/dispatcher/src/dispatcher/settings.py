"""The dispatcher's settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from dispatcher.domain.eligibility import Action, Policy, SeveralFrontals
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
        description="Model version that jobs are pinned to, as the worker's log names it; `default` takes any. "
        "Part of the job's id: another value makes new jobs for studies that come again. A job that a worker of "
        "another version hands back, or a person replays, gets the value of now.",
    )
    modalities: Annotated[tuple[str, ...], NoDecode] = Field(
        ("CR", "DX"),
        description="Modalities that are reported, comma-separated; add SC where films come as secondary captures.",
    )
    missing_evidence: Action = Field(
        "report",
        description="A study whose headers name no body part or no view: `report` (the worker then looks whether the "
        "image is a frontal chest radiograph), `ask` a person, or `skip`.",
    )
    conflicting_evidence: Action = Field(
        "skip", description="Headers that name the chest in one place and another body part in another: as above."
    )
    minimum_age_years: int = Field(
        18, ge=0, le=120, description="Patients younger than this are paediatric; 0 makes no difference."
    )
    younger_patients: Action = Field(
        "skip", description="Paediatric studies, by birth date, age or the words of the examination: as above."
    )
    unknown_age: Action = Field("report", description="Studies whose headers give no credible age: as above.")
    maximum_study_age_days: int = Field(
        0,
        ge=0,
        le=36500,
        description="A study taken longer before it came is an old one, sent for comparison as a rule; 0: no limit.",
    )
    old_studies: Action = Field("skip", description="Old studies: as above.")
    burned_in_annotation: Action = Field(
        "report", description="Images that say that text is burned into the picture: as above."
    )
    several_frontals: SeveralFrontals = Field(
        "last", description="Which of several frontal views is reported; `ask` lets a person decide."
    )
    chest_procedure_codes: Annotated[tuple[str, ...], NoDecode] = Field(
        ("24648-8", "30745-4", "36554-4", "36643-5", "42272-5"),
        description="Procedure codes, comma-separated, that mean a chest radiograph; the default holds LOINC's.",
    )
    max_image_pixels: int = Field(
        64_000_000, ge=1, description="Images of more pixels (rows x columns) are not reported."
    )
    max_images: int = Field(
        2, ge=1, le=8, description="Most images of a study that the model sees: a frontal, a lateral, then others."
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
    max_handed_over: int = Field(
        200,
        ge=1,
        le=100_000,
        description="Routine jobs are held back while so many jobs are with the task queue and the workers; more than "
        "all workers' `ECHO_CONCURRENCY` together. The fewer, the sooner a pause has drained the workers.",
    )
    site_reports_per_minute: float = Field(
        0.0,
        ge=0,
        le=6000,
        description="Most routine jobs a minute from one site (called AE title), to spare its EHR; 0: no limit.",
    )
    retain_jobs_days: float = Field(
        90.0,
        ge=0,
        le=36500,
        description="Jobs that are done, superseded or discarded, decided holds and decided dead letters (which name "
        "the patient) are deleted after this long; what waits for a person stays. 0: never.",
    )
    sweep_interval_s: float = Field(2.0, ge=0.05, le=60, description="How often overdue jobs are looked for.")

    @field_validator("modalities", "stat_calling_ae_titles", "chest_procedure_codes", mode="before")
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
            conflicting_evidence=self.conflicting_evidence,
            minimum_age_years=self.minimum_age_years,
            younger_patients=self.younger_patients,
            unknown_age=self.unknown_age,
            maximum_study_age_days=self.maximum_study_age_days,
            old_studies=self.old_studies,
            burned_in_annotation=self.burned_in_annotation,
            several_frontals=self.several_frontals,
            chest_procedure_codes=frozenset(self.chest_procedure_codes),
            max_pixels=self.max_image_pixels,
            max_images=self.max_images,
            stat_calling_ae_titles=frozenset(self.stat_calling_ae_titles),
        )
