"""Why an object is refused, and which status the sender gets for it (PS3.4 table B.2-1, PS3.7 annex C).

Over STOW-RS the same number is its Failure Reason (PS3.18 table I.2-2).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

SUCCESS = 0x0000


class Reason(Enum):
    """A reason code with its DIMSE status and a sentence without identifiers."""

    LOW_SPACE = ("low_space", 0xA700, "free space is below the watermark")
    STORE_UNAVAILABLE = ("store_unavailable", 0xA700, "the object store cannot be written")
    DATABASE_UNAVAILABLE = ("database_unavailable", 0xA700, "the database cannot be written")
    UID_MISMATCH = ("uid_mismatch", 0xA900, "SOP Class or Instance UID of the data set differ from the command")
    WRONG_STUDY = ("wrong_study", 0xA900, "the object belongs to another study than the STOW-RS request names")
    INVALID_SOP_INSTANCE_UID = ("invalid_sop_instance_uid", 0x0117, "the command's SOP Instance UID is no UID")
    INVALID_SOP_CLASS_UID = ("invalid_sop_class_uid", 0x0118, "the command's SOP Class UID is no UID")
    SOP_CLASS_NOT_KEPT = ("sop_class_not_kept", 0x0122, "this storage class is not kept here")
    UNREADABLE = ("unreadable", 0xC000, "the data set cannot be read")
    TRUNCATED = ("truncated", 0xC000, "the data set ends inside an element")
    TOO_DEEP = ("too_deep", 0xC000, "sequences are nested too deeply")
    MISSING_UID = ("missing_uid", 0xC000, "a UID that is needed for indexing is missing from the data set")
    INVALID_UID = ("invalid_uid", 0xC000, "a UID in the data set is no UID")
    OBJECT_TOO_LARGE = ("object_too_large", 0xA701, "the object is larger than the limit")
    INTERNAL = ("internal_error", 0x0110, "the object could not be processed")

    def __init__(self, code: str, status: int, text: str) -> None:
        self.code = code
        self.status = status
        self.text = text

    @property
    def is_kept(self) -> bool:
        """Whether the bytes go to quarantine, because sending them again would not help."""
        return self.status == 0xC000


@dataclass
class Refused(Exception):
    """An object is not taken. `detail` names the element or place; it never quotes a value."""

    reason: Reason
    detail: str = ""

    def text(self) -> str:
        """The reason for people, without identifiers."""
        return f"{self.reason.text} ({self.detail})" if self.detail else self.reason.text
