"""The REST API's shapes, and how they are made from what the read model holds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, Field, PlainSerializer

from console.adapters.queries import Row
from console.domain.facts import Fact, Image
from console.domain.state import (
    Reason,
    State,
    newest_delivery,
    newest_report,
    summarize,
    summarize_versions,
)
from console.domain.timeline import timeline_of
from pipeline.clock import iso
from pipeline.events import REPORT_REQUESTED

Moment = Annotated[datetime, PlainSerializer(iso, when_used="json")]


class ReasonOut(BaseModel):
    """Why a study stands where it stands."""

    code: str
    text: str
    next_attempt_at: Moment | None = None

    @classmethod
    def of(cls, reason: Reason | None) -> ReasonOut | None:
        """None stays None."""
        if reason is None:
            return None
        return cls(code=reason.code, text=reason.text, next_attempt_at=reason.next_attempt_at)


class StudyItem(BaseModel):
    """One line of the list."""

    study_instance_uid: str
    accession_number: str | None
    patient_id: str | None
    description: str | None
    state: State
    version: int = Field(description="The newest version; it is this version's state that is shown.")
    reason: ReasonOut | None
    flags: list[str] = Field(description="Flags of the newest draft.")
    received_at: Moment
    updated_at: Moment

    @classmethod
    def of_row(cls, row: Row) -> StudyItem:
        """From a row of the table `studies`."""
        reason = (
            ReasonOut(code=row["reason_code"], text=row["reason_text"], next_attempt_at=row["next_attempt_at"])
            if row["reason_code"]
            else None
        )
        return cls(**{name: row[name] for name in cls.model_fields if name != "reason"}, reason=reason)


class StudyPage(BaseModel):
    """Studies, newest first; `next` is the cursor of the following page, null at the end."""

    items: list[StudyItem]
    next: str | None


class VersionOut(BaseModel):
    """One version of a study."""

    version: int
    state: State
    reason: ReasonOut | None
    received_at: Moment
    updated_at: Moment
    image_count: int | None


class StepOut(BaseModel):
    """One step of the timeline; `duration_s` counts from the step before it in the same version."""

    at: Moment
    version: int
    hop: str
    event: str
    title: str
    detail: str
    duration_s: float | None


class SentenceOut(BaseModel):
    """One sentence of the draft."""

    section: Literal["findings", "impression", "other"]
    text: str
    confidence: float = Field(ge=0, le=1)
    flags: list[str]


class ModelOut(BaseModel):
    """Which model wrote the draft."""

    id: str
    version: str


class ReportOut(BaseModel):
    """The newest draft; `version` is the study's version that it was written for."""

    version: int
    generated_at: Moment
    findings: str
    impression: str
    sentences: list[SentenceOut]
    flags: list[str]
    notices: list[str]
    model: ModelOut
    structured_findings: list[dict[str, Any]]
    images: list[dict[str, str]]
    timings: dict[str, float]
    tokens: dict[str, float]
    out_of_domain_score: float | None


class FhirOut(BaseModel):
    """Where the newest delivered report stands."""

    version: int = Field(description="The study's version that was delivered.")
    resource: str = Field(description="Type and id: `DiagnosticReport/123`.")
    url: str
    version_id: str
    result: Literal["created", "updated", "unchanged"]
    delivered_at: Moment


class ImageOut(BaseModel):
    """One object of the study; `url` gives it as PNG."""

    sop_instance_uid: str
    series_instance_uid: str
    modality: str | None
    view_position: str | None
    rows: int | None
    columns: int | None
    has_pixel_data: bool
    url: str


class StudyDetail(StudyItem):
    """All that is known of one study."""

    versions: list[VersionOut]
    timeline: list[StepOut]
    report: ReportOut | None
    fhir: FhirOut | None
    images: list[ImageOut] = Field(description="Those that the model saw first, in its order.")


class DeadLetterOut(BaseModel):
    """An event that a consumer gave up; the event itself stays in `topic` + `.dlq`."""

    event_id: str
    at: Moment
    topic: str
    partition: int
    offset: int
    key: str
    consumer: str
    error_code: str
    error_message: str
    attempts: int


class DeadLetterPage(BaseModel):
    """Dead letters, newest first."""

    items: list[DeadLetterOut]
    next: str | None


class RefusalOut(BaseModel):
    """A sender was told no; the same refusal `count` times between `first_at` and `at` is one entry."""

    event_id: str
    at: Moment
    first_at: Moment
    scope: Literal["connection", "association", "object", "request"]
    reason: ReasonOut
    status: str | None = Field(description="What the sender was told: DIMSE status, or result/source/reason.")
    calling_ae_title: str
    called_ae_title: str
    address: str
    accession_number: str | None
    count: int

    @classmethod
    def of_row(cls, row: Row) -> RefusalOut:
        """From a row of the table `refusals`."""
        reason = ReasonOut(code=row["reason_code"], text=row["reason_text"])
        return cls(**{name: row[name] for name in cls.model_fields if name != "reason"}, reason=reason)


class RefusalPage(BaseModel):
    """Refusals, newest first."""

    items: list[RefusalOut]
    next: str | None


class Problem(BaseModel):
    """An error as RFC 9457 writes it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str | None = None


def study_detail(facts: Sequence[Fact], images: Sequence[Image]) -> StudyDetail | None:
    """The whole study; None when nothing but dead letters is known of it."""
    summary = summarize(facts)
    if summary is None:
        return None
    return StudyDetail(
        study_instance_uid=summary.study_instance_uid,
        accession_number=summary.accession_number,
        patient_id=summary.patient_id,
        description=summary.description,
        state=summary.state,
        version=summary.version,
        reason=ReasonOut.of(summary.reason),
        flags=list(summary.flags),
        received_at=summary.received_at,
        updated_at=summary.updated_at,
        versions=[
            VersionOut(
                version=v.version,
                state=v.state,
                reason=ReasonOut.of(v.reason),
                received_at=v.received_at,
                updated_at=v.updated_at,
                image_count=v.image_count,
            )
            for v in summarize_versions(facts)
        ],
        timeline=[StepOut(**vars(step)) for step in timeline_of(facts)],
        report=_report(newest_report(facts)),
        fhir=_fhir(newest_delivery(facts)),
        images=_images(facts, images),
    )


def _report(fact: Fact | None) -> ReportOut | None:
    if fact is None:
        return None
    kept = {name: fact.data[name] for name in ReportOut.model_fields if name not in ("version", "generated_at")}
    return ReportOut(version=fact.version or 1, generated_at=fact.at, **kept)


def _fhir(fact: Fact | None) -> FhirOut | None:
    if fact is None:
        return None
    resource = f"{fact.data['resource_type']}/{fact.data['resource_id']}"
    return FhirOut(
        version=fact.version or 1,
        resource=resource,
        url=f"{fact.data['fhir_server'].rstrip('/')}/{resource}",
        version_id=fact.data["resource_version"],
        result=fact.data["result"],
        delivered_at=fact.at,
    )


def _images(facts: Sequence[Fact], images: Sequence[Image]) -> list[ImageOut]:
    requests = [fact for fact in facts if fact.type == REPORT_REQUESTED]
    newest = max(requests, key=lambda fact: (fact.version or 0, fact.order), default=None)
    seen = {uid: place for place, uid in enumerate(newest.data["images"])} if newest else {}

    def place(image: Image) -> tuple[Any, ...]:
        return (
            seen.get(image.sop_instance_uid, len(seen)),
            not image.has_pixel_data,
            image.view_position not in ("PA", "AP"),
            image.series_instance_uid,
            image.instance_number or 0,
            image.sop_instance_uid,
        )

    return [
        ImageOut(
            sop_instance_uid=image.sop_instance_uid,
            series_instance_uid=image.series_instance_uid,
            modality=image.modality,
            view_position=image.view_position,
            rows=image.rows,
            columns=image.columns,
            has_pixel_data=image.has_pixel_data,
            url=f"/api/studies/{quote(image.study_instance_uid)}/images/{quote(image.sop_instance_uid)}.png",
        )
        for image in sorted(images, key=place)
    ]
