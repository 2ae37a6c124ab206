"""The few bytes that are worth reading and writing without the library: P-DATA-TF, and the answer to a C-STORE.

pynetdicom builds some ten objects for each of them, which costs more than receiving a small image.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

P_DATA_TF = 0x04
"""Type of a PDU, PS3.8 section 9.3.5."""
COMMAND, LAST = 1, 2
"""Bits of a message control header, PS3.8 section 9.3.5.2."""
_ITEM = struct.Struct(">LB")
_P_DATA_HEAD = struct.Struct(">BBLLBB")
_OVERHEAD = 6  # of an item in a PDU: its length, presentation context and message control header
_C_STORE_RSP, _NO_DATA_SET = 0x8001, 0x0101


def presentation_data_values(body: memoryview) -> list[tuple[int, memoryview]]:
    """(presentation context, message control header and fragment) of a P-DATA-TF PDU, PS3.8 section 9.3.5.1.

    Raises `ValueError` if the items do not fill the PDU.
    """
    values = []
    at = 0
    while at < len(body):
        if at + _ITEM.size > len(body):
            raise ValueError("an item is cut off")
        length, context_id = _ITEM.unpack_from(body, at)
        end = at + 4 + length
        if length < 1 or end > len(body):
            raise ValueError("an item that no PDU can hold")
        values.append((context_id, body[at + _ITEM.size : end]))
        at = end
    return values


def p_data_of_command(context_id: int, command: bytes, maximum_length: int) -> Iterator[bytes]:
    """P-DATA-TF PDUs that carry a command set. `maximum_length`: what the peer takes, 0 for any (PS3.8 annex D.1)."""
    most = max(1, maximum_length - _OVERHEAD) if maximum_length else len(command)
    for start in range(0, len(command), most):
        part = command[start : start + most]
        last = LAST if start + most >= len(command) else 0
        yield _P_DATA_HEAD.pack(P_DATA_TF, 0, len(part) + _OVERHEAD, len(part) + 2, context_id, COMMAND | last) + part


def store_response(sop_class_uid: str, sop_instance_uid: str, message_id: int, status: int) -> bytes:
    """Command set of a C-STORE-RSP, PS3.7 section 9.3.1.2, in Implicit VR Little Endian."""
    elements = b"".join(
        (
            _element(0x0002, _uid(sop_class_uid)),
            _element(0x0100, struct.pack("<H", _C_STORE_RSP)),
            _element(0x0120, struct.pack("<H", message_id & 0xFFFF)),
            _element(0x0800, struct.pack("<H", _NO_DATA_SET)),
            _element(0x0900, struct.pack("<H", status)),
            _element(0x1000, _uid(sop_instance_uid)),
        )
    )
    return _element(0x0000, struct.pack("<L", len(elements))) + elements


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0x0000, number, len(value)) + value


def _uid(text: str) -> bytes:
    encoded = text.encode("ascii", "replace")
    return encoded + b"\0" * (len(encoded) % 2)
