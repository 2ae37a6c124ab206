"""The head of a Part 10 file (PS3.10 section 7.1): read from a file that is still arriving, and written."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dicom_listener.domain.refusals import Reason, Refused
from dicom_listener.domain.uids import is_uid

MOST_HEAD = 65_536
"""Bytes: preamble and file meta information of the longest private information that senders write."""
# Constant over releases, so that the same data set always makes the same file and duplicates are recognised.
IMPLEMENTATION_CLASS_UID = "2.25.229447813905537011275319837465019283746"
IMPLEMENTATION_VERSION_NAME = "ECHO-CXR-1"
_PREFIX_END = 132
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_WANTED = {
    0x0002: "MediaStorageSOPClassUID",
    0x0003: "MediaStorageSOPInstanceUID",
    0x0010: "TransferSyntaxUID",
}


@dataclass(frozen=True)
class FileMeta:
    """What the file says that it holds. `size_bytes`: where its data set begins."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    size_bytes: int


def part10_head(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Preamble, prefix and file meta information before a data set that came over the network."""
    elements = b"".join(
        (
            struct.pack("<HH2sHL", 2, 0x0001, b"OB", 0, 2) + b"\0\1",
            _short(0x0002, b"UI", sop_class_uid),
            _short(0x0003, b"UI", sop_instance_uid),
            _short(0x0010, b"UI", transfer_syntax_uid),
            _short(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
            _short(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
        )
    )
    return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0x0000, b"UL", 4, len(elements)) + elements


def _short(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii")
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


def read_file_meta(head: bytes, *, whole: bool) -> FileMeta | None:
    """The file meta information, or None while more bytes are needed. `whole`: there are no more.

    Its group length is not believed: the first element of another group ends it. Raises `Refused`.
    """
    if len(head) < _PREFIX_END and not whole:
        return None
    if head[128:_PREFIX_END] != b"DICM":
        raise Refused(Reason.UNREADABLE, "it is no Part 10 file")
    values: dict[int, bytes] = {}
    position = _PREFIX_END
    while True:
        header = _header(head, position)
        if header is None:
            break
        group, element, start, length = header
        if group != 0x0002:
            return _checked(values, position)
        if start + length > len(head):
            break
        values[element] = head[start : start + length]
        position = start + length
    if whole and position == len(head):
        return _checked(values, position)
    if whole:
        raise Refused(Reason.TRUNCATED, "in the file meta information")
    if len(head) >= MOST_HEAD:
        raise Refused(Reason.UNREADABLE, "the file meta information does not end")
    return None


def _header(head: bytes, position: int) -> tuple[int, int, int, int] | None:
    """(group, element, place of the value, length) of an element in Explicit VR Little Endian; None if it is cut."""
    if len(head) - position < 8:
        return None
    group, element, vr, length = struct.unpack_from("<HH2sH", head, position)
    if group != 0x0002:
        return group, element, position, 0
    if not (vr.isalpha() and vr.isupper()):
        raise Refused(Reason.UNREADABLE, "the file meta information is not in Explicit VR")
    if vr not in _LONG_VRS:
        return group, element, position + 8, length
    if len(head) - position < 12:
        return None
    (length,) = struct.unpack_from("<L", head, position + 8)
    return group, element, position + 12, length


def _checked(values: dict[int, bytes], size_bytes: int) -> FileMeta:
    uids: list[str] = []
    for element, keyword in _WANTED.items():
        uid = values.get(element, b"").decode("ascii", "replace").rstrip("\0 ")
        if not uid:
            raise Refused(Reason.MISSING_UID, keyword)
        if not is_uid(uid):
            raise Refused(Reason.INVALID_UID, keyword)
        uids.append(uid)
    sop_class_uid, sop_instance_uid, transfer_syntax_uid = uids
    return FileMeta(sop_class_uid, sop_instance_uid, transfer_syntax_uid, size_bytes)
