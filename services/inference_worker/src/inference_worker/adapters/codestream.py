"""Sizes that compressed frames state about themselves, read before any decoder allocates memory for them.

A DICOM header of 512 x 512 may stand before a JPEG frame of 20,000 x 20,000: decoders believe the frame.
"""

from __future__ import annotations

import struct

_JPEG_SOF = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}  # ITU-T T.81 table B.1; F7 is JPEG-LS (T.87)
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "


def frame_size(frame: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, components) as the codestream says; None for what is neither JPEG, JPEG-LS nor JPEG 2000."""
    if frame.startswith(b"\xff\xd8"):
        return _jpeg_size(frame)
    if frame.startswith(_JP2_SIGNATURE):
        start = frame.find(b"\xff\x4f\xff\x51")
        return _jpeg2000_size(frame[start:]) if start >= 0 else None
    if frame.startswith(b"\xff\x4f\xff\x51"):
        return _jpeg2000_size(frame)
    return None


def _jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    at = 2
    while at + 4 <= len(frame):
        if frame[at] != 0xFF:
            return None
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _JPEG_SOF:
            if at + 10 > len(frame):
                return None
            rows, columns, components = struct.unpack_from(">HHB", frame, at + 5)
            return rows, columns, components
        if marker == 0xDA:  # scan data before any frame header
            return None
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return None


def _jpeg2000_size(frame: bytes) -> tuple[int, int, int] | None:
    # SOC, SIZ, Lsiz, Rsiz, then Xsiz, Ysiz, XOsiz, YOsiz, 4 tile fields, Csiz (ISO 15444-1 A.5.1)
    if len(frame) < 42:
        return None
    columns, rows, left, top = struct.unpack_from(">IIII", frame, 8)
    (components,) = struct.unpack_from(">H", frame, 40)
    return rows - top, columns - left, components
