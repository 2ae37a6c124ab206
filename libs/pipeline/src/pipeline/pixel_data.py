"""What stored pixel data say of themselves, looked at before any decoder believes it. The decoders are the services'.

A DICOM header of 512 x 512 may stand before a JPEG frame of 20,000 x 20,000: decoders believe the frame. What decoders
pass over on their way to the frame header is passed over here; a frame whose header they might find elsewhere has no
size.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable
from typing import Any

# ITU-T T.81 table B.1; F7 and F8 are JPEG-LS (T.87 table C.1)
_SOF = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_SEGMENTS = frozenset({0xC4, 0xCC, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xF8, 0xFE})
_SOS = 0xDA
# JPEG XT's residual frames, JPG, SOI, EOI, and the hierarchical mode (DHP, EXP), whose frames have sizes of their own
_REFUSED = frozenset({*range(0xB0, 0xC0), 0xC8, 0xD8, 0xD9, 0xDE, 0xDF})
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
_SOC_SIZ = b"\xff\x4f\xff\x51"
OFFSET_TABLES = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
"""Needless to find the first frame, and they could show the decoder other bytes than were checked: to be dropped."""
_AXES = dict.fromkeys("LRAP", "horizontal") | dict.fromkeys("HF", "vertical")
_RLE_HEADER = struct.Struct("<16I")
_RLE_PADDING = 4096  # bytes that a segment may unfold to beyond its own: writers fill up, and runs end late


def frame_size(frame: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, components) as the codestream says; None for what is neither JPEG, JPEG-LS nor JPEG 2000."""
    if frame.startswith(b"\xff\xd8"):
        return _jpeg_size(frame)
    if frame.startswith(_JP2_SIGNATURE):
        return _jpeg2000_size(_jp2_codestream(frame))
    return _jpeg2000_size(frame)


def _jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    size, at = None, 2
    while (at := frame.find(b"\xff", at)) >= 0 and at + 4 <= len(frame):  # stray bytes stand between markers
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == _SOS:
            return size
        elif marker in _SOF or marker in _SEGMENTS:
            (length,) = struct.unpack_from(">H", frame, at + 2)
            if marker in _SOF:
                if size is not None or length < 8 or at + 10 > len(frame):
                    return None
                rows, columns, components = struct.unpack_from(">HHB", frame, at + 5)
                size = rows, columns, components
            if length < 2:
                return None
            at += 2 + length
        elif marker in _REFUSED:
            return None
        else:  # TEM, RSTn and what is reserved: no segment follows
            at += 2
    return None


def _jp2_codestream(frame: bytes) -> bytes:
    """The contiguous codestream box (ISO/IEC 15444-1 I.5.4); empty without one, or where a palette multiplies it."""
    at = 0
    while at + 8 <= len(frame):
        length, kind = struct.unpack_from(">I4s", frame, at)
        if kind == b"jp2c":
            return b"" if b"pclr" in frame[:at] else frame[at + 8 :]
        if length < 8:  # a box to the end of the file, or longer than 4 GiB: none that stands before the codestream
            break
        at += length
    return b""


def _jpeg2000_size(frame: bytes) -> tuple[int, int, int] | None:
    # SOC, SIZ, Lsiz, Rsiz, then Xsiz, Ysiz, XOsiz, YOsiz, 4 tile fields, Csiz (ISO/IEC 15444-1 A.5.1)
    if not frame.startswith(_SOC_SIZ) or len(frame) < 42:
        return None
    columns, rows, left, top = struct.unpack_from(">IIII", frame, 8)
    (components,) = struct.unpack_from(">H", frame, 40)
    return rows - top, columns - left, components


def rle_fits(frame: bytes, segment_bytes: int, segments: int) -> bool:
    """Whether a run-length coded frame (PS3.5 annex G) has so many segments, none of which unfolds to more bytes.

    Decoders unfold a segment whole before they look at its length, and two bytes become 128.
    """
    if len(frame) < _RLE_HEADER.size:
        return False
    count, *offsets = _RLE_HEADER.unpack_from(frame)
    if count != segments or count > len(offsets):
        return False
    places = [*offsets[:count], len(frame)]
    limit = segment_bytes + _RLE_PADDING
    return all(_unfolded(frame[start:end], limit) <= limit for start, end in itertools.pairwise(places))


def _unfolded(segment: bytes, limit: int) -> int:
    """Bytes that a PackBits segment unfolds to; counted no further than just beyond the limit."""
    at, total, length = 0, 0, len(segment)
    while at < length and total <= limit:
        control = segment[at]
        if control < 128:  # so many bytes and one follow as they are
            total += control + 1
            at += control + 2
        elif control > 128:
            total += 257 - control
            at += 2
        else:
            at += 1
    return total


def in_lowest_bits(
    decode: Callable[..., Any], *, bits_allocated: int, bits_stored: int, high_bit: int, signed: bool
) -> Any:
    """The stored values of `decode()`, an array; `decode(bits_stored=n)` gives the lowest n bits of each.

    Parsers take the lowest bits for the stored ones. The High Bit may say that they lie higher, as it was once allowed
    (PS3.5 8.1.1): believed only where something lies there.
    """
    if not 0 < bits_stored <= high_bit < bits_allocated:
        return decode()
    values = decode(bits_stored=high_bit + 1)
    low, above = (-(1 << bits_stored - 1), 1 << bits_stored - 1) if signed else (0, 1 << bits_stored)
    return decode() if low <= values.min() and values.max() < above else values >> (high_bit + 1 - bits_stored)


def upright(pixels: Any, orientation: object) -> Any:
    """A picture, rows x columns or rows x columns x samples, as a radiograph is looked at: head up, left side right.

    `orientation` is the header's Patient Orientation (PS3.3 C.7.6.1.1.1): where its rows and its columns run to. Rows
    are to run to the patient's left, in a lateral view to the back, and columns to the feet; without this the sides of
    a mirrored picture would be reported for each other. A header that says nothing of the kind changes nothing.
    """
    if isinstance(orientation, str | None) or not isinstance(orientation, Iterable):
        return pixels
    principal = [str(direction).strip().upper()[:1] for direction in orientation]
    turned = pixels
    if [*map(_AXES.get, principal)] == ["vertical", "horizontal"]:
        turned, principal = turned.swapaxes(0, 1), principal[::-1]
    if [*map(_AXES.get, principal)] != ["horizontal", "vertical"]:
        return pixels
    if principal[0] in "RA":
        turned = turned[:, ::-1]
    if principal[1] == "H":
        turned = turned[::-1]
    return pixels if turned is pixels else turned.copy()
