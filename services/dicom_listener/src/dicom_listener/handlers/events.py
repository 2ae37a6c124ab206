"""The listener's two events, built from its rows."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from dicom_listener.domain.completeness import CompletionReason
from dicom_listener.ports import CountedRefusal
from pipeline.clock import iso
from pipeline.events import DICOM_REFUSED, STUDY_COMPLETED, STUDY_OPENED, Event, study_event

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


def dicom_refused(counted: CountedRefusal, now: datetime) -> Event:
    """A sender was told no."""
    refusal, id_ = counted.refusal, str(uuid.uuid4())
    return Event(
        type=DICOM_REFUSED,
        source=SOURCE,
        subject=printable(refusal.peer.calling_ae_title) or refusal.peer.address or "unknown",
        correlationid=id_,
        time=now,
        data={
            "scope": refusal.scope,
            "reason": {"code": refusal.reason, "text": refusal.text[:512]},
            "status": refusal.answer,
            "calling_ae_title": printable(refusal.peer.calling_ae_title),
            "called_ae_title": printable(refusal.peer.called_ae_title),
            "address": refusal.peer.address[:64],
            "accession_number": refusal.accession_number,
            "count": counted.count,
            "first_at": iso(counted.first_at),
            "last_at": iso(counted.last_at),
        },
        id=id_,
    )


def printable(text: str) -> str:
    """A peer's word without what could confuse a terminal, a page or a database."""
    return "".join(c if c.isprintable() else "?" for c in text)[:16]
