"""What a sender hears over STOW-RS: the Store Instances Response (PS3.18 section 10.5.3 and annex I.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from dicom_listener.domain.refusals import SUCCESS, Reason

OK, SOME_FAILED, NONE_KEPT, TOO_LARGE = 200, 202, 409, 413


class NotTaken(Enum):
    """Why a request is refused as a whole: a reason code, the HTTP status, and a sentence."""

    INVALID_STUDY = ("invalid_uid", 400, "the study that the request names is no UID")
    MALFORMED = ("body_malformed", 400, "the body is no whole multipart message with objects in it")
    BROKEN = ("request_broken", 400, "the connection ended before the request did")
    TOKEN = ("token_missing_or_wrong", 401, "the bearer token is missing or wrong")
    NOT_ALLOWED = ("sender_not_allowed", 403, "the sender or its address is not on the allow-list")
    ANSWER_TYPE = ("not_acceptable", 406, "the answer is application/dicom+json")
    SILENT = ("idle_timeout", 408, "the sender was silent for too long")
    TOO_LARGE = ("request_too_large", 413, "the request, or the number of its objects, is larger than the limit")
    MEDIA_TYPE = ("media_type", 415, 'only multipart/related; type="application/dicom"; boundary=... is taken')
    ENCODING = ("content_encoding", 415, "the body must not be compressed as a whole")
    TOO_MANY = ("too_many_requests", 503, "too many requests at the same time")
    TOO_MANY_OF_PEER = ("too_many_requests_of_peer", 503, "too many requests of this address at the same time")
    LOW_SPACE = ("low_space", 503, "free space is below the watermark")
    UNAVAILABLE = ("store_unavailable", 503, "an object could not be kept; those behind it were not tried")

    def __init__(self, code: str, status: int, text: str) -> None:
        self.code = code
        self.status = status
        self.text = text


@dataclass(frozen=True)
class PartOutcome:
    """One object of a request. The UIDs are None where its file meta information could not be read.

    `status` is the DIMSE status that the same object gets on the DICOM port; as a Failure Reason it means the same.
    """

    sop_class_uid: str | None
    sop_instance_uid: str | None
    status: int


def http_status(outcomes: Sequence[PartOutcome]) -> int:
    """200: all are kept; 202: some; 409: none; 413: none, because all were too large."""
    failed = [each.status for each in outcomes if each.status != SUCCESS]
    if not failed:
        return OK
    if len(failed) < len(outcomes):
        return SOME_FAILED
    return TOO_LARGE if set(failed) == {Reason.OBJECT_TOO_LARGE.status} else NONE_KEPT


def store_instances_response(outcomes: Sequence[PartOutcome]) -> dict[str, Any]:
    """The data set of the response in the DICOM JSON model. Nothing can be retrieved here: Retrieve URL is empty."""
    kept = [_item(each) | {"00081190": {"vr": "UR"}} for each in outcomes if each.status == SUCCESS]
    failed = [_item(each) | _why(each) for each in outcomes if each.status != SUCCESS and each.sop_instance_uid]
    unnamed = [_why(each) for each in outcomes if each.status != SUCCESS and not each.sop_instance_uid]
    response: dict[str, Any] = {"00081190": {"vr": "UR"}}
    for tag, items in (("00081198", failed), ("00081199", kept), ("0008119A", unnamed)):
        if items:
            response[tag] = {"vr": "SQ", "Value": items}
    return response


def _item(outcome: PartOutcome) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [outcome.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [outcome.sop_instance_uid]},
    }


def _why(outcome: PartOutcome) -> dict[str, Any]:
    return {"00081197": {"vr": "US", "Value": [outcome.status]}}
