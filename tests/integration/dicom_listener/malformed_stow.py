"""Malformed STOW-RS requests: what is sent, what the sender hears, what people are told."""

from __future__ import annotations

from dataclasses import dataclass

from integration.dicom_listener.peers import CT, encoded, image, new_uid
from integration.dicom_listener.stow_peers import BOUNDARY, CONTENT_TYPE, body_of, part10

PATH = "/dicom-web/studies"
_PREAMBLE = bytes(128) + b"DICM"


@dataclass(frozen=True)
class StowCase:
    """`answer`: the HTTP status. `reason`: code of the refusal that people find, or None if there is none."""

    what: str
    answer: int
    reason: str | None
    request: bytes


STOW_CASES: list[StowCase] = []


def request(
    body: bytes, *, path: str = PATH, content_type: str | None = CONTENT_TYPE, length: int | None = None, more: str = ""
) -> bytes:
    """A request with a length of its own choice if wanted; a negative one stands for none."""
    length = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}"
    head += f"Content-Length: {length}\r\n" if length >= 0 else ""
    head += f"Content-Type: {content_type}\r\n" if content_type is not None else ""
    return head.encode() + b"\r\n" + body


def case(what: str, answer: int, reason: str | None, sent: bytes) -> None:
    """Enter a case."""
    STOW_CASES.append(StowCase(what, answer, reason, sent))


def body(what: str, answer: int, reason: str | None, sent: bytes) -> None:
    """Enter a case of a body under good headers."""
    case(what, answer, reason, request(sent))


def part(what: str, reason: str, file: bytes) -> None:
    """Enter a case of one part in a good body."""
    body(what, 409, reason, body_of(file))


def _element(number: int, value: str, vr: bytes = b"UI") -> bytes:
    data = value.encode() + b"\0" * (len(value) % 2)
    return b"\x02\x00" + number.to_bytes(2, "little") + vr + len(data).to_bytes(2, "little") + data


def _file(sop_class: str = CT, instance: str = "2.25.9", syntax: str = "1.2.840.10008.1.2.1") -> bytes:
    meta = [_element(number, value) for number, value in ((2, sop_class), (3, instance), (16, syntax)) if value]
    return _PREAMBLE + b"".join(meta) + encoded(image(sop_class=CT, SOPInstanceUID="2.25.9"))


good = body_of(part10(image()))

case("rubbish instead of a request line", 400, None, b"\x00\x01\x02 rubbish\r\n\r\n")
case("a DICOM association", 400, None, b"\x01\x00\x00\x00\x00\xcd\x00\x01\r\n\r\n")
case("GET", 405, None, b"GET /dicom-web/studies HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
case("another path", 404, None, request(good, path="/dicom-web/series"))
case("a path that climbs", 400, "invalid_uid", request(good, path=f"{PATH}/..%5c..%5cetc"))
case("a study that is no UID", 400, "invalid_uid", request(good, path=f"{PATH}/1.02.3"))
case("a study of 65 characters", 400, "invalid_uid", request(good, path=f"{PATH}/2.{'1' * 63}"))
case("no Content-Type", 415, "media_type", request(good, content_type=None))
case("a single file without multipart", 415, "media_type",
     request(part10(image()), content_type="application/dicom"))  # fmt: skip
case("a form", 415, "media_type", request(good, content_type=f"multipart/form-data; boundary={BOUNDARY}"))
case("metadata with bulk data", 415, "media_type",
     request(good, content_type=f'multipart/related; type="application/dicom+json"; boundary={BOUNDARY}'))  # fmt: skip
case("no boundary", 415, "media_type", request(good, content_type='multipart/related; type="application/dicom"'))
case("a boundary of 300 characters", 415, "media_type",
     request(good, content_type=f"multipart/related; boundary={'b' * 300}"))  # fmt: skip
case("a compressed body", 415, "content_encoding", request(good, more="Content-Encoding: gzip\r\n"))
case("an answer in XML wanted", 406, "not_acceptable", request(good, more="Accept: application/dicom+xml\r\n"))
case(
    "a Content-Length of 5 TB",
    413,
    "request_too_large",
    request(good, length=5 * 10**12, more="Expect: 100-continue\r\n"),
)
case("half the body, then silence", 408, "idle_timeout", request(good[:2000], length=len(good)))
body("no body", 400, "body_malformed", b"")
body("a body without objects", 400, "body_malformed", f"--{BOUNDARY}--\r\n".encode())
body("a body without delimiters", 400, "body_malformed", part10(image()))
body("delimiters of another boundary", 400, "body_malformed", good.replace(b"a-boundary", b"b-boundary"))
body("text before the first delimiter", 400, "body_malformed", b"This is a multipart message." + good)
body("no last delimiter", 400, "body_malformed", good[: -len(BOUNDARY) - 8])
body("half a last delimiter", 400, "body_malformed", good[:-5])
body("a part's header without a colon", 400, "body_malformed", good.replace(b"Type: ", b"Type  "))
body("a part's header of 100 KB", 400, "body_malformed", good.replace(b"Type: ", b"Type: " + b"x" * 100_000))
body(
    "a part with 100 headers", 400, "body_malformed", good.replace(b"Content-Type", b"A: b\r\n" * 100 + b"Content-Type")
)
part("a part of no bytes", "unreadable", b"")
part("a part of text", "unreadable", b"Hello.")
part("a data set without a Part 10 head", "unreadable", encoded(image()))
part("a preamble and nothing more", "missing_uid", _PREAMBLE)
part("file meta information that is cut", "truncated", _file()[:150])
part("file meta information in Implicit VR", "unreadable",
     _PREAMBLE + b"\x02\x00\x02\x00\x0a\x00\x00\x001.2.840.10" + bytes(50))  # fmt: skip
part("file meta information that says 4 GB", "truncated",
     _PREAMBLE + b"\x02\x00\x01\x00OB\x00\x00\xff\xff\xff\xff" + bytes(100))  # fmt: skip
part("1 MB of file meta information", "unreadable",
     _PREAMBLE + b"\x02\x00\x01\x00OB\x00\x00\xff\xff\xff\x7f" + bytes(2**20))  # fmt: skip
part("no Media Storage SOP Instance UID", "missing_uid", _file(instance=""))
part("no Transfer Syntax UID", "missing_uid", _file(syntax=""))
part("a SOP Instance UID with a traversal", "invalid_uid", _file(instance="../../etc/x"))
part("a Transfer Syntax UID that is none", "invalid_uid", _file(syntax="explicit"))
part("another SOP Instance UID than the data set", "uid_mismatch", _file(instance="2.25.10"))
part("another SOP Class UID than the data set", "uid_mismatch", _file(sop_class="1.2.840.10008.5.1.4.1.1.7"))
part("a data set that is cut", "truncated", part10(image())[:-500])
part("no StudyInstanceUID", "missing_uid", part10(image(StudyInstanceUID=None)))
case("an object of another study", 409, "wrong_study", request(good, path=f"{PATH}/{new_uid()}"))
body("text behind the last delimiter", 200, None, good + b"an epilogue")
body("a part without headers", 200, None,
     body_of(part10(image())).replace(b"Content-Type: application/dicom\r\n", b""))  # fmt: skip
body("a part of another Content-Type", 200, None,
     body_of(part10(image())).replace(b"application/dicom", b"application/octet-stream"))  # fmt: skip


def stow_table() -> list[str]:
    """The second half of docs/malformed-input.md."""
    lines = [
        "",
        "## STOW-RS",
        "",
        "The same for the STOW-RS port, from `malformed_stow.py` beside it. After each line nothing",
        "half is kept, and the next good request is answered with 200. Objects that cannot be read lie in quarantine.",
        "",
        "| what is sent | HTTP status | reason code |",
        "|---|---|---|",
    ]
    return lines + [f"| {each.what} | {each.answer} | {each.reason or ''} |" for each in STOW_CASES]
