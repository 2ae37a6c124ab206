"""DICOM over a bare socket: every byte is ours, so that it can be wrong."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence

CONTEXT_NAME = "1.2.840.10008.3.1.1.1"
DX, VERIFICATION, COMMITMENT = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.1.1", "1.2.840.10008.1.20.1"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
DEFLATED, BIG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
CONTEXTS = ((1, DX, EXPLICIT), (3, VERIFICATION, IMPLICIT), (5, COMMITMENT, IMPLICIT), (7, DX, DEFLATED))
COMMAND, DATA, LAST = 1, 0, 2


def pdu(type_: int, body: bytes, length: int | None = None) -> bytes:
    """A PDU, with a length of its own choice if wanted."""
    return struct.pack(">BBL", type_, 0, len(body) if length is None else length) + body


def item(type_: int, body: bytes, length: int | None = None) -> bytes:
    """An item of an association PDU."""
    return struct.pack(">BBH", type_, 0, len(body) if length is None else length) + body


def context(id_: int, abstract: str, *transfer: str) -> bytes:
    """A presentation context item."""
    body = bytes([id_, 0, 0, 0]) + item(0x30, abstract.encode()) + b"".join(item(0x40, t.encode()) for t in transfer)
    return item(0x20, body)


def user_information(maximum: int = 16_384, extra: bytes = b"") -> bytes:
    """Maximum length and implementation class UID."""
    return item(0x50, item(0x51, struct.pack(">L", maximum)) + item(0x52, b"1.2.3.4") + extra)


def associate_rq(
    contexts: bytes | None = None,
    *,
    called: bytes = b"ECHO",
    calling: bytes = b"RAW",
    version: int = 1,
    name: str = CONTEXT_NAME,
    user: bytes | None = None,
    length: int | None = None,
) -> bytes:
    """An A-ASSOCIATE-RQ."""
    if contexts is None:
        contexts = b"".join(context(*each) for each in CONTEXTS)
    fixed = struct.pack(">HH", version, 0) + called.ljust(16)[:16] + calling.ljust(16)[:16] + bytes(32)
    items = item(0x10, name.encode()) + contexts + (user_information() if user is None else user)
    return pdu(1, fixed + items, length)


def pdv(context_id: int, control: int, data: bytes, length: int | None = None) -> bytes:
    """A presentation data value."""
    return struct.pack(">LBB", len(data) + 2 if length is None else length, context_id, control) + data


def p_data(*values: bytes) -> bytes:
    """A P-DATA-TF."""
    return pdu(4, b"".join(values))


def element(tag: int, value: bytes | int) -> bytes:
    """An element in Implicit VR Little Endian; a number becomes US."""
    raw = struct.pack("<H", value) if isinstance(value, int) else value
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(raw)) + raw


def padded(text: str) -> bytes:
    """A UI value."""
    raw = text.encode("latin-1")
    return raw + b"\0" * (len(raw) % 2)


def store_command(uid: str, *, without: Sequence[int] = (), **changes: bytes | int) -> bytes:
    """Command set of a C-STORE-RQ; `changes` are `t00000100=...` by tag, `without` lists tags left out."""
    fields: dict[int, bytes | int] = {
        0x00000002: padded(DX),
        0x00000100: 0x0001,
        0x00000110: 1,
        0x00000700: 0,
        0x00000800: 0x0000,
        0x00001000: padded(uid),
    }
    fields.update({int(name[1:], 16): value for name, value in changes.items()})
    body = b"".join(element(tag, value) for tag, value in sorted(fields.items()) if tag not in without)
    return element(0x00000000, struct.pack("<L", len(body))) + body


def message(context_id: int, command: bytes, data: bytes | None = None, chunk: int = 16_000) -> bytes:
    """A whole DIMSE message in as many PDUs as it takes."""
    pdus = [p_data(pdv(context_id, COMMAND | LAST, command))]
    if data is not None:
        starts = range(0, max(1, len(data)), chunk)
        pdus += [
            p_data(pdv(context_id, DATA | (LAST if start + chunk >= len(data) else 0), data[start : start + chunk]))
            for start in starts
        ]
    return b"".join(pdus)


class Wire:
    """One connection."""

    def __init__(self, port: int, seconds: float = 60) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """A peer that hangs up while we are still sending is an answer, too."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def nothing_follows(self) -> None:
        """Close our direction; the peer may have closed both."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def associate(self) -> None:
        """An association with the usual contexts."""
        self.send(associate_rq())
        answer = self.answer()
        assert answer == "accepted", f"the association was {answer}"

    def _exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            try:
                more = self.socket.recv(count - len(data))
            except ConnectionResetError:
                return None
            if not more:
                return None
            data += more
        return data

    def answer(self) -> str:
        """The next thing that comes: accepted, rejected r/s/d, status XXXX, released, ended (A-ABORT or closed)."""
        header = self._exactly(6)
        if header is None:
            return "ended"
        type_, _, length = struct.unpack(">BBL", header)
        body = self._exactly(length)
        if body is None or type_ == 7:
            return "ended"
        if type_ == 2:
            return "accepted"
        if type_ == 3:
            return f"rejected {body[1]}/{body[2]}/{body[3]}"
        if type_ == 6:
            return "released"
        assert type_ == 4
        return f"status {_status(body[6:]):04X}"


def _status(command: bytes) -> int:
    position = 0
    while position < len(command):
        group, number, length = struct.unpack_from("<HHL", command, position)
        if (group, number) == (0x0000, 0x0900):
            return int(struct.unpack_from("<H", command, position + 8)[0])
        position += 8 + length
    raise AssertionError("a response without a status")
