"""The listener's two events, built from its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from dicom_listener.domain.completeness import CompletionReason
from pipeline.clock import iso
from pipeline.events import STUDY_COMPLETED, STUDY_OPENED, Event, study_event

SOURCE = "/dicom_listener"


def study_opened(
    study_instance_uid: str, version: int, calling_ae_title: str, study: Mapping[str, Any], now: datetime
) -> Event:
    """The first object of a version was stored. `study`: the study level fields of its header."""
    return study_event(
        STUDY_OPENED,
        SOURCE,
        study_instance_uid,
        version,
        now,
        {
            "reason": "new" if version == 1 else "late_instance",
            "calling_ae_title": calling_ae_title,
            "accession_number": study["order"]["accession_number"],
            "patient_id": study["patient"]["patient_id"],
            "received_at": iso(now),
        },
    )


def study_completed(
    study_instance_uid: str,
    version: int,
    reason: CompletionReason,
    study: Mapping[str, Any],
    received: Mapping[str, Any],
    instances: Sequence[Mapping[str, Any]],
    now: datetime,
) -> Event:
    """A version is complete. `received`: AE titles and times; `instances`: all valid ones, of any version."""
    return study_event(
        STUDY_COMPLETED,
        SOURCE,
        study_instance_uid,
        version,
        now,
        {"reason": reason.value, **study, **received, "instances": list(instances)},
    )
