"""Walks an encoded data set (PS3.5 section 7) once: is it whole, and what are the values of the wanted elements?

Nothing is decoded and no value beyond the wanted ones is touched, pixel data least of all. Deviations that real
senders show are tolerated (implicit elements inside an explicit data set, unknown VRs, zero padding at the end);
an element that ends behind the end of the bytes is not.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from dataclasses import dataclass, field

from dicom_listener.domain.refusals import Reason, Refused

Buffer = bytes | mmap.mmap

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
_PRIVATE_IMPLICIT = "1.2.840.113619.5.2"  # a private syntax of old GE devices: implicit, only the pixels big endian

_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_MAX_DEPTH = 32
_MAX_VALUE = 65_536  # bytes; a longer header value is of no use to anybody here
_MAX_INFLATED = 64 * 2**20  # bytes of a deflated data set that are looked at; what lies behind is stored all the same


@dataclass
class Elements:
    """Raw values of the wanted elements of one data set or sequence item."""

    little_endian: bool = True
    values: dict[int, bytes] = field(default_factory=dict)
    sequences: dict[int, list[Elements]] = field(default_factory=dict)
    has_pixel_data: bool = False


def read_elements(data: Buffer, start: int, transfer_syntax_uid: str, wanted: frozenset[int]) -> Elements:
    """Elements of the data set that begins at `start`; raises `Refused` when the bytes are no whole data set."""
    partial = False
    if transfer_syntax_uid in DEFLATED:
        try:
            data, partial = _inflate(data, start)
            start = 0
        except zlib.error:
            pass  # not deflated after all, as some senders do; if it is damaged, the walk will say so
    walker = _Walker(data, wanted, little_endian=transfer_syntax_uid != EXPLICIT_BIG, partial=partial)
    return walker.top_level(start, implicit=transfer_syntax_uid in (IMPLICIT_LITTLE, _PRIVATE_IMPLICIT))


def _inflate(data: Buffer, start: int) -> tuple[bytes, bool]:
    """The inflated bytes, and whether they were cut at the limit."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(data[start:], _MAX_INFLATED)
    if stream.eof:
        return inflated, False
    if len(inflated) < _MAX_INFLATED:
        raise Refused(Reason.TRUNCATED, "inside the deflated stream")
    return inflated, True


class _Walker:
    def __init__(self, data: Buffer, wanted: frozenset[int], *, little_endian: bool, partial: bool) -> None:
        self._data = data
        self._wanted = wanted
        self._little = little_endian
        self._partial = partial
        self._pixels_begun = False
        order = "<" if little_endian else ">"
        self._tag_format = struct.Struct(order + "HH")
        self._long = struct.Struct(order + "L")
        self._short = struct.Struct(order + "H")

    def top_level(self, start: int, *, implicit: bool) -> Elements:
        found = Elements(self._little)
        try:
            self._data_set(found, start, len(self._data), implicit, depth=0, undefined=False)
        except Refused as refused:
            cut_by_us = self._partial and found.values
            # What follows the pixel data is padding or signatures, without which the object is as good.
            if refused.reason is not Reason.TRUNCATED or not (found.has_pixel_data or cut_by_us):
                raise
            found.has_pixel_data = self._pixels_begun
        return found

    def _data_set(
        self, found: Elements, position: int, end: int, implicit: bool, *, depth: int, undefined: bool
    ) -> int:
        """Read until `end`, or until the item delimiter of an item of undefined length; returns the place behind."""
        if depth > _MAX_DEPTH:
            raise Refused(Reason.TOO_DEEP)
        implicit = self._is_implicit(position, end, implicit)
        while position < end:
            if end - position < 8:
                if any(self._data[position:end]):
                    raise Refused(Reason.TRUNCATED, "in an element's header")
                break
            tag = self._tag(position)
            if tag == _ITEM_END and undefined:
                return position + 8
            if tag == 0 and not any(self._data[position : min(end, position + 4096)]):
                break  # zero padding behind the last element
            vr, length, value = self._header(position, end, implicit)
            if depth == 0 and tag in _PIXELS:
                self._pixels_begun = True
            if length == _UNDEFINED:
                items: list[Elements] | None = [] if tag in self._wanted else None
                position = self._items(items, value, end, implicit or vr == b"UN", depth, None)
                if items is not None:
                    found.sequences[tag] = items
            else:
                position = value + length
                if position > end:
                    raise Refused(Reason.TRUNCATED, f"in element ({tag >> 16:04X},{tag & 0xFFFF:04X})")
                if tag in self._wanted:
                    self._keep(found, tag, vr, value, length, implicit, depth)
            if depth == 0 and tag in _PIXELS:
                found.has_pixel_data = True
        if undefined:
            raise Refused(Reason.TRUNCATED, "in a sequence item")
        return position

    def _keep(self, found: Elements, tag: int, vr: bytes, value: int, length: int, implicit: bool, depth: int) -> None:
        is_item = length >= 8 and self._tag(value) == _ITEM
        if vr == b"SQ" or (vr in (b"", b"UN") and is_item):
            items: list[Elements] = []
            self._items(items, value, value + length, implicit or vr == b"UN", depth, value + length)
            found.sequences[tag] = items
        elif length <= _MAX_VALUE:
            found.values[tag] = bytes(self._data[value : value + length])

    def _items(
        self, items: list[Elements] | None, position: int, end: int, implicit: bool, depth: int, stop: int | None
    ) -> int:
        """Items of a sequence, or fragments of encapsulated pixel data; returns the place behind them."""
        while stop is None or position < stop:
            if end - position < 8:
                raise Refused(Reason.TRUNCATED, "in a sequence")
            tag = self._tag(position)
            (length,) = self._long.unpack_from(self._data, position + 4)
            position += 8
            if tag == _SEQUENCE_END:
                return position
            if tag != _ITEM:
                raise Refused(Reason.UNREADABLE, "a sequence holds something that is no item")
            item = Elements(self._little)
            if length == _UNDEFINED:
                position = self._data_set(item, position, end, implicit, depth=depth + 1, undefined=True)
            else:
                if position + length > end:
                    raise Refused(Reason.TRUNCATED, "in an item")
                if items is not None:
                    self._data_set(item, position, position + length, implicit, depth=depth + 1, undefined=False)
                position += length
            if items is not None:
                items.append(item)
        return position

    def _tag(self, position: int) -> int:
        group, element = self._tag_format.unpack_from(self._data, position)
        return int(group) << 16 | int(element)

    def _is_implicit(self, position: int, end: int, declared: bool) -> bool:
        """What the first element says wins over what was declared: senders mislabel."""
        if end - position < 8 or self._tag(position) >> 16 == 0xFFFE:
            return declared
        vr = self._data[position + 4 : position + 6]
        if declared:
            return not (vr in _SHORT_VRS or vr in _LONG_VRS)
        return not (vr.isalpha() and vr.isupper())

    def _header(self, position: int, end: int, implicit: bool) -> tuple[bytes, int, int]:
        """VR (empty if implicit), length and place of the value of the element at `position`."""
        vr = b"" if implicit else bytes(self._data[position + 4 : position + 6])
        if implicit or not (vr.isalpha() and vr.isupper()):
            (length,) = self._long.unpack_from(self._data, position + 4)
            return b"", length, position + 8
        if vr not in _LONG_VRS:
            (length,) = self._short.unpack_from(self._data, position + 6)
            return vr, length, position + 8
        if end - position < 12:
            raise Refused(Reason.TRUNCATED, "in an element's header")
        (length,) = self._long.unpack_from(self._data, position + 8)
        return vr, length, position + 12
