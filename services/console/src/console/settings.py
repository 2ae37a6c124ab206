"""The console's settings."""

from __future__ import annotations

from pydantic import Field, field_validator

from pipeline.settings import BusSettings, CommonSettings, DatabaseSettings, ObjectStoreSettings


class Settings(CommonSettings, DatabaseSettings, BusSettings, ObjectStoreSettings):
    """Settings of `python -m console`."""

    http_port: int = Field(
        8000,
        ge=0,
        le=65535,
        description="Port of the pages, the REST API, `/healthz`, `/readyz` and `/metrics`; 0 takes a free one.",
    )
    dicom_hint: str | None = Field(
        None,
        max_length=200,
        description="Where to send studies, in words for the empty page: `AE title ECHO, host 10.0.0.5, port 11112`.",
    )
    projection_generation: int = Field(
        1,
        ge=1,
        le=1_000_000,
        description="Raise it by one to empty the read model and fill it again from what the topics still hold.",
    )
    dispatcher_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="The dispatcher's HTTP address. With it the pages have buttons to release, decline, replay and "
        "discard; whoever reaches the console can use them.",
    )
    fhir_writer_url: str | None = Field(
        None, pattern=r"^https?://", description="The FHIR writer's HTTP address, for the button `Deliver again`."
    )
    max_image_pixels: int = Field(
        64_000_000,
        ge=1,
        le=1_000_000_000,
        description="An image with more pixels is refused before any of it is decoded.",
    )

    @field_validator("object_store_url")
    @classmethod
    def _known_store(cls, value: str) -> str:
        if not value.startswith(("file:///", "s3://")):
            raise ValueError("allowed are file:///path and s3://bucket/prefix")
        return value

    @property
    def consumer_group(self) -> str:
        """A generation has its own group, so that it starts at the oldest event."""
        return "console" if self.projection_generation == 1 else f"console-{self.projection_generation}"
