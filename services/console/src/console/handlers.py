"""One event in, the projection up to date."""

from __future__ import annotations

from datetime import datetime

from console.domain.facts import dead_letter_of, fact_of, images_of, refusal_of
from console.domain.state import summarize
from console.ports import Projection
from pipeline.events import DEAD_LETTER, DICOM_REFUSED, Event


def project(projection: Projection, event: Event, now: datetime) -> None:
    """Keep the event's fact and compute the study's summary anew from all that is known of it."""
    if event.type == DICOM_REFUSED:  # of a sender, not of a study
        projection.add_refusal(refusal_of(event))
        return
    fact = fact_of(event)
    projection.lock_study(fact.study_instance_uid)
    if event.type == DEAD_LETTER:
        projection.add_dead_letter(dead_letter_of(event))
    projection.add_images(images_of(event))
    projection.add_fact(fact)
    summary = summarize(projection.facts_of(fact.study_instance_uid))
    if summary is not None:
        projection.save(summary, now)
