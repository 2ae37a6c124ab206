"""The table of malformed input: what is sent, what the sender hears, what people are told.

`docs/malformed-input.md` is written from it (`python tests/integration/dicom_listener/malformed.py`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from integration.dicom_listener.malformed_stow import stow_table
from integration.dicom_listener.peers import CT, encoded, image, new_uid
from integration.dicom_listener.wire import (
    COMMAND,
    DATA,
    DX,
    EXPLICIT,
    IMPLICIT,
    LAST,
    Wire,
    associate_rq,
    context,
    element,
    item,
    message,
    p_data,
    padded,
    pdu,
    pdv,
    store_command,
    user_information,
)

Send = Callable[[Wire], None]


@dataclass(frozen=True)
class Case:
    """`answer`: the last thing heard. `reason`: code of the refusal that people find, or None if there is none."""

    level: str
    what: str
    answer: str
    reason: str | None
    send: Send
    associated: bool = True


CASES: list[Case] = []


def case(level: str, what: str, answer: str, reason: str | None, *, associated: bool = True) -> Callable[[Send], Send]:
    """Enter a case whose function sends it."""

    def enter(send: Send) -> Send:
        CASES.append(Case(level, what, answer, reason, send, associated))
        return send

    return enter


def raw(level: str, what: str, answer: str, reason: str | None, data: bytes, *, associated: bool = True) -> None:
    """Enter a case of fixed bytes."""
    case(level, what, answer, reason, associated=associated)(lambda wire: wire.send(data))


def before(what: str, answer: str, reason: str | None, data: bytes) -> None:
    """On a fresh connection, without an association."""
    raw("PDU", what, answer, reason, data, associated=False)


def inside(what: str, answer: str, reason: str | None, data: bytes) -> None:
    """On an association."""
    raw("PDU", what, answer, reason, data)


# --- PDU ---------------------------------------------------------------------------------------------------------

before("an unknown PDU type 00H", "ended", "pdu_invalid", pdu(0x00, b"abcd"))
before("an unknown PDU type 08H", "ended", "pdu_invalid", pdu(0x08, b"abcd"))
before("an unknown PDU type FFH", "ended", "pdu_invalid", pdu(0xFF, b"abcd"))
before("an HTTP request", "ended", "pdu_invalid", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
before(
    "a TLS ClientHello on a port without TLS", "ended", "pdu_invalid", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
)
before("half a header, then silence", "ended", "stalled_pdu", b"\x01\x00\x00")
before("half an A-ASSOCIATE-RQ, then silence", "ended", "stalled_pdu", associate_rq()[:60])
before("an A-ASSOCIATE-RQ of no length", "ended", "pdu_invalid", pdu(1, b""))
before("an A-ASSOCIATE-RQ of 20 bytes", "ended", "pdu_invalid", pdu(1, bytes(20)))
before("an A-ASSOCIATE-RQ that says 4 GB", "ended", "pdu_too_long", associate_rq(length=0xFFFFFFFF))
before("an A-ASSOCIATE-RQ of 2 MB", "ended", "pdu_too_long", associate_rq(bytes(2**21)))
before("protocol version 0", "rejected 1/2/2", "protocol_version", associate_rq(version=0))
before("protocol version 2 only", "rejected 1/2/2", "protocol_version", associate_rq(version=2))
before("an unknown application context", "rejected 1/1/2", "application_context", associate_rq(name="1.2.3"))
before("no called AE title", "ended", "pdu_invalid", associate_rq(called=b""))
before("no calling AE title", "ended", "pdu_invalid", associate_rq(calling=b""))
before("a calling AE title in bytes that are no ASCII", "ended", "pdu_invalid",
       associate_rq(calling=b"\xff\xfe\x00\x01"))  # fmt: skip
before("a called AE title with a line feed", "ended", "pdu_invalid", associate_rq(called=b"EC\nHO"))
before("no presentation context", "accepted", None, associate_rq(b""))
before("no user information", "accepted", None, associate_rq(user=b""))
before("an even presentation context ID", "ended", "pdu_invalid", associate_rq(context(2, DX, EXPLICIT)))
before("presentation context ID 0", "ended", "pdu_invalid", associate_rq(context(0, DX, EXPLICIT)))
before("the same presentation context ID twice", "accepted", None,
       associate_rq(context(1, DX, EXPLICIT) + context(1, DX, IMPLICIT)))  # fmt: skip
before("a presentation context without transfer syntax", "ended", "pdu_invalid", associate_rq(context(1, DX)))
before("an abstract syntax that is no UID", "accepted", None, associate_rq(context(1, "../../etc", EXPLICIT)))
before("a transfer syntax that is no UID", "accepted", None, associate_rq(context(1, DX, "x y z")))
before("an item longer than its PDU", "ended", "pdu_invalid", associate_rq(item(0x20, b"\x01\x00\x00\x00", 5000)))
before("an item shorter than its parts", "ended", "pdu_invalid",
       associate_rq(item(0x20, b"\x01\x00\x00\x00" + item(0x30, DX.encode(), 900))))  # fmt: skip
before("an unknown item type", "ended", "pdu_invalid", associate_rq(item(0x99, b"abcd")))
before("a maximum length of 0 (no limit)", "accepted", None, associate_rq(user=user_information(0)))
before("a maximum length of 1", "rejected 1/1/1", "maximum_length_too_small", associate_rq(user=user_information(1)))
before("P-DATA before an association", "ended", "pdu_invalid", p_data(pdv(1, COMMAND | LAST, b"abcd")))
before("A-RELEASE-RQ before an association", "ended", "pdu_invalid", pdu(5, bytes(4)))
before("A-ASSOCIATE-AC from the sender", "ended", "pdu_invalid", pdu(2, associate_rq()[6:]))
before("A-ABORT first of all", "ended", None, pdu(7, bytes(4)))

inside("a second A-ASSOCIATE-RQ", "ended", "pdu_invalid", associate_rq())
inside("A-RELEASE-RP without a request", "ended", "pdu_invalid", pdu(6, bytes(4)))
inside("an unknown PDU type", "ended", "pdu_invalid", pdu(0x42, b"abcd"))
inside("P-DATA of no length", "ended", "idle_timeout", pdu(4, b""))
inside("P-DATA longer than negotiated", "ended", "pdu_too_long", pdu(4, b"", 20_000) + bytes(100))
inside("P-DATA that says 4 GB", "ended", "pdu_too_long", pdu(4, b"", 0xFFFFFFFF) + bytes(100))
inside("half a P-DATA, then silence", "ended", "idle_timeout", pdu(4, b"abcd", 4000))
inside("a value longer than its P-DATA", "ended", "pdu_invalid", p_data(pdv(1, 3, b"abcd", 5000)))
inside("a value of length 0", "ended", "pdu_invalid", p_data(struct.pack(">L", 0)))
inside("a value of length 1", "ended", "message_invalid", p_data(struct.pack(">LB", 1, 1)))
inside("a value for a context that nobody asked for", "ended", "message_invalid", p_data(pdv(99, 3, b"abcd")))
inside("A-RELEASE-RQ of no length", "released", None, pdu(5, b""))
inside("silence on an association", "ended", "idle_timeout", b"")


def _half(ds: object) -> bytes:
    """Command and the first fragment of the data."""
    uid = str(getattr(ds, "SOPInstanceUID", ""))
    return p_data(pdv(1, COMMAND | LAST, store_command(uid))) + p_data(pdv(1, DATA, b"\x08\x00\x05\x00"))


inside("A-RELEASE-RQ inside a message", "released", None, _half(image()) + pdu(5, bytes(4)))

# --- DIMSE -------------------------------------------------------------------------------------------------------


def dimse(what: str, answer: str, reason: str | None, data: bytes) -> None:
    """On an association."""
    raw("DIMSE", what, answer, reason, data)


def stored(**changes: bytes | int) -> bytes:
    """A good object under a command with changes."""
    ds = image()
    return message(1, store_command(str(ds.SOPInstanceUID), **changes), encoded(ds))


def lacking(tag: int) -> bytes:
    """A good object under a command that lacks an element."""
    ds = image()
    return message(1, store_command(str(ds.SOPInstanceUID), without=[tag]), encoded(ds))


dimse("a data set without a command", "ended", "message_invalid", p_data(pdv(1, DATA | LAST, b"abcd")))
dimse("a command of rubbish", "ended", "message_invalid", p_data(pdv(1, COMMAND | LAST, b"\xff" * 100)))
dimse("an empty command", "ended", "message_invalid", p_data(pdv(1, COMMAND | LAST, b"")))
dimse(
    "a command of 100 KB",
    "ended",
    "message_too_long",
    b"".join(p_data(pdv(1, COMMAND, bytes(15_000))) for _ in range(7)),
)
dimse("no Command Field", "ended", "message_invalid", lacking(0x00000100))
dimse("an unknown Command Field", "ended", "message_invalid", stored(t00000100=0x7777))
dimse("no Command Data Set Type", "ended", "message_invalid", lacking(0x00000800))
dimse("no Message ID", "ended", "message_invalid", lacking(0x00000110))
dimse("a Message ID of four bytes", "status 0000", None, stored(t00000110=b"\x01\x00\x00\x00"))
dimse("no Priority", "status 0000", None, lacking(0x00000700))
dimse("no Affected SOP Class UID", "ended", "message_invalid", lacking(0x00000002))
dimse("no Affected SOP Instance UID", "ended", "message_invalid", lacking(0x00001000))
for words, bad in {
    "a traversal": "../../../../tmp/owned",
    "an absolute path": "/etc/passwd",
    "65 characters": "1." + "2" * 63,
    "a leading zero": "1.02.3",
    "two dots": "1..2",
    "letters": "1.2.x",
    "a NUL inside": "1.2\x003",
}.items():
    dimse(f"a SOP Instance UID with {words}", "status 0117", "invalid_sop_instance_uid", stored(t00001000=padded(bad)))
dimse("a SOP Class UID that is none", "status 0118", "invalid_sop_class_uid", stored(t00000002=padded("../x")))
dimse("a command that says that there is no data set", "status C000", "unreadable",
      message(1, store_command(new_uid(), t00000800=0x0101)))  # fmt: skip
dimse(
    "a response that nobody waits for",
    "ended",
    "message_invalid",
    message(1, store_command(new_uid(), t00000100=0x8001), b"abcd"),
)
dimse("an N-EVENT-REPORT that nobody asked for", "ended", "message_invalid",
      message(5, store_command(new_uid(), t00000100=0x0100), b"abcd"))  # fmt: skip
dimse("a C-FIND", "ended", "message_invalid", message(1, store_command(new_uid(), t00000100=0x0020), b"abcd"))
dimse(
    "a C-STORE in the context of Verification",
    "ended",
    "message_invalid",
    message(3, store_command(new_uid()), b"abcd"),
)
dimse(
    "a command inside a data set",
    "ended",
    "message_invalid",
    _half(image()) + p_data(pdv(1, COMMAND | LAST, store_command(new_uid()))),
)
dimse("fragments of two contexts", "ended", "message_invalid", _half(image()) + p_data(pdv(7, DATA | LAST, b"abcd")))
dimse("200 requests without waiting for answers", "status 0000", None,
      b"".join(stored() for _ in range(5)) * 40)  # fmt: skip
dimse("an N-ACTION of 5 MB", "ended", "message_too_long",
      message(5, store_command(new_uid(), t00000100=0x0130, t00001008=1), bytes(5 * 2**20)))  # fmt: skip
dimse("a C-CANCEL of nothing", "released", None,
      message(1, b"".join(element(tag, value) for tag, value in {
          0x00000000: b"\x1e\0\0\0", 0x00000100: 0x0FFF, 0x00000120: 9, 0x00000800: 0x0101}.items()))
      + pdu(5, bytes(4)))  # fmt: skip

# --- data set ----------------------------------------------------------------------------------------------------


def data_set(
    what: str, answer: str, reason: str | None, make: Callable[[bytes, str], bytes], context_id: int = 1
) -> None:
    """A C-STORE whose data set is made from a good one and its SOP Instance UID."""
    ds = image()
    uid = str(ds.SOPInstanceUID)
    raw("data set", what, answer, reason, message(context_id, store_command(uid), make(encoded(ds), uid)))


def explicit(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """An element in Explicit VR Little Endian with a 32 bit length."""
    return struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, vr, 0, len(value) if length is None else length) + value


def nested(depth: int) -> bytes:
    """Sequences in sequences."""
    start = explicit(0x00081140, b"SQ", b"", 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return start * depth + end * depth


def deflated(data: bytes) -> bytes:
    """Raw deflate."""
    stream = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


SAFE = "status 0000"
BAD = "status C000"
data_set("nothing", BAD, "missing_uid", lambda _d, _u: b"")
data_set("zeros", BAD, "missing_uid", lambda _d, _u: bytes(4000))
data_set("a PNG", BAD, "truncated", lambda _d, _u: b"\x89PNG\r\n\x1a\n" + b"this is no data set " * 40)
data_set("cut inside the pixels", BAD, "truncated", lambda d, _u: d[:-100])
data_set("cut inside the header", BAD, "truncated", lambda d, _u: d[:90])
data_set("cut after five bytes", BAD, "truncated", lambda d, _u: d[:5])
data_set("a whole Part 10 file, preamble and all", BAD, "truncated", lambda d, _u: bytes(128) + b"DICM" + d)
data_set("an element that says 4 GB", BAD, "truncated", lambda d, _u: explicit(0x00080001, b"OB", b"", 0xFFFFFFFE) + d)
data_set("a sequence without an end", BAD, "truncated", lambda _d, _u: explicit(0x00081140, b"SQ", b"", 0xFFFFFFFF))
data_set("a sequence of something that is no item", BAD, "unreadable",
         lambda _d, _u: explicit(0x00081140, b"SQ", b"abcdefgh" * 2, 0xFFFFFFFF))  # fmt: skip
data_set("an item that is longer than its sequence", BAD, "truncated",
         lambda _d, _u: explicit(0x00081140, b"SQ", b"\xfe\xff\x00\xe0\xff\xff\xff\x00", 0xFFFFFFFF))  # fmt: skip
data_set("sequences nested 40 deep", BAD, "too_deep", lambda d, _u: nested(40) + d)
data_set("sequences nested 20,000 deep", BAD, "too_deep", lambda d, _u: nested(20_000) + d)
data_set(
    "sequences nested 20 deep",
    SAFE,
    None,
    lambda d, _u: nested(20) + d,
)
data_set("compressed pixels without their end", BAD, "truncated",
         lambda d, _u: d[: d.index(b"\xe0\x7f\x10\x00")]
         + explicit(0x7FE00010, b"OB", b"\xfe\xff\x00\xe0\0\0\0\0", 0xFFFFFFFF))  # fmt: skip
data_set("another SOP Instance UID than the command", "status A900", "uid_mismatch", lambda _d, _u: encoded(image()))
data_set("another SOP Class UID than the command", "status A900", "uid_mismatch",
         lambda _d, u: encoded(image(sop_class=CT, SOPInstanceUID=u)))  # fmt: skip
for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"):
    data_set(
        f"no {keyword}", BAD, "missing_uid", lambda _d, u, k=keyword: encoded(image(**{"SOPInstanceUID": u, k: None}))
    )
data_set("a StudyInstanceUID that is a path", BAD, "invalid_uid",
         lambda _d, u: encoded(image(study="9.9", SOPInstanceUID=u)).replace(b"9.9\0", b"../x"))  # fmt: skip
data_set("a StudyInstanceUID with trailing blanks", SAFE, None,
         lambda _d, u: encoded(image(study="9.9", SOPInstanceUID=u)).replace(b"9.9\0", b"9.9 "))  # fmt: skip
data_set("zeros behind the last element", SAFE, None, lambda d, _u: d + bytes(512))
data_set("rubbish behind the pixels", SAFE, None, lambda d, _u: d + b"\xff" * 13)
data_set(
    "implicit elements in an explicit context", SAFE, None, lambda _d, u: encoded(image(SOPInstanceUID=u), IMPLICIT)
)
data_set("a file meta group inside the data set", SAFE, None,
         lambda d, _u: struct.pack("<HH2sH", 2, 0x10, b"UI", 18) + b"1.2.840.10008.1.2\0" + d)  # fmt: skip
data_set("an unknown VR", SAFE, None, lambda d, _u: d[: d.index(b"\x10\x00\x20\x00")]
         + struct.pack("<HH2sH", 0x0009, 0x1001, b"ZZ", 4) + b"abcd" + d[d.index(b"\x10\x00\x20\x00") :])  # fmt: skip
data_set("an unknown character set and odd bytes in a name", SAFE, None,
         lambda d, _u: d.replace(b"PHANTOM^ONE", b"\xff\xfe\x1b$)C^^^=="))  # fmt: skip
data_set("a deflated data set that is cut", BAD, "truncated", lambda d, _u: deflated(d)[:-40], 7)
data_set("a deflated data set of 300 MB of zeros", BAD, "missing_uid", lambda _d, _u: deflated(bytes(300 * 2**20)), 7)
data_set("a deflated context, but not deflated", SAFE, None, lambda d, _u: d, 7)


def table() -> str:
    """docs/malformed-input.md."""
    lines = [
        "# Malformed input and its answers",
        "",
        "What the DICOM port answers to input that breaks the standard. The table is written from",
        "`tests/integration/dicom_listener/malformed.py`, which sends every line over a bare socket and checks the",
        "answer, the reason that people find, that nothing half is kept, and that the next C-ECHO is answered.",
        "",
        '"ended" is an A-ABORT or the end of the connection. Objects answered with C000H lie in quarantine.',
        "",
        "| level | what is sent | answer | reason code |",
        "|---|---|---|---|",
    ]
    lines += [f"| {each.level} | {each.what} | {each.answer} | {each.reason or ''} |" for each in CASES]
    return "\n".join(lines + stow_table()) + "\n"


if __name__ == "__main__":
    (Path(__file__).parents[3] / "docs" / "malformed-input.md").write_text(table())
