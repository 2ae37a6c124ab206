"""Multipart bodies, however they are cut into pieces, and heads of Part 10 files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_listener.adapters.parts import Exchange, IncomingParts, MalformedBody, multipart_of
from dicom_listener.adapters.staging import IncomingFile
from dicom_listener.domain.part10 import MOST_HEAD, FileMeta, part10_head, read_file_meta
from dicom_listener.domain.refusals import Reason, Refused
from dicom_listener.domain.stow import PartOutcome, http_status, store_instances_response
from dicom_listener.ports import Peer
from pipeline.store import LocalObjectStore

UIDS = ("1.2.840.10008.5.1.4.1.1.1.1", "2.25.1", "1.2.840.10008.1.2.1")
HEAD = part10_head(*UIDS)
FIRST = (
    b"\x08\x00\x05\x00CS\x00\x00"  # an element of the data set, so that what follows cannot be file meta information
)
BOUNDARY = b"xYz"


class Keeper:
    """Takes the place of the receiver: remembers what was staged."""

    def __init__(self) -> None:
        self.files: list[tuple[str, str, str, bytes]] = []

    def admit(self, *_uids: str) -> Refused | None:
        return None

    def receive(self, staged: IncomingFile, *_: Any) -> int:
        staged.finish()
        data = staged.path.read_bytes()[staged.data_set_offset :]
        self.files.append((staged.sop_class_uid, staged.sop_instance_uid, staged.transfer_syntax_uid, data))
        staged.discard()
        return 0


def taken(store: LocalObjectStore, pieces: list[bytes]) -> list[tuple[str, str, str, bytes]]:
    keeper = Keeper()
    parts = IncomingParts(
        BOUNDARY,
        keeper,  # type: ignore[arg-type]  # as much of a receiver as is needed
        store,
        Peer("A", "B", ""),
        Exchange(),
        maximum_object_bytes=2**20,
    )
    for piece in pieces:
        parts.feed(piece)
    parts.finish()
    assert [outcome.status for outcome in parts.outcomes] == [0] * len(keeper.files)
    return keeper.files


def body_of(*files: bytes, head: bytes = b"Content-Type: application/dicom\r\n") -> bytes:
    body = b"".join(b"--" + BOUNDARY + b"\r\n" + head + b"\r\n" + file + b"\r\n" for file in files)
    return body + b"--" + BOUNDARY + b"--\r\n"


TRICKY = [
    b"",
    b"\r\n",
    b"\r\n--",
    b"\r\n--xY",
    b"\r\n--xYa\r\n",
    b"--xYz",
    b"\r\r\n--xYy--",
    b"\r\n-\r\n--x\r\n--xY\r\n",
    b"a" * 300 + b"\r",
]
"""Data that look like the beginning of a delimiter."""


@pytest.mark.parametrize("size", range(1, 60))
def test_pieces_of_every_size(tmp_path: Path, size: int) -> None:
    store = LocalObjectStore(tmp_path)
    body = body_of(*[HEAD + FIRST + data for data in TRICKY])
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    assert taken(store, pieces) == [(*UIDS, FIRST + data) for data in TRICKY]


def test_a_cut_at_every_byte(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    body = b"\r\n" + body_of(HEAD + FIRST + TRICKY[4], b"no DICOM\r\n", HEAD + FIRST) + b"an epilogue"
    expected = [(*UIDS, FIRST + TRICKY[4]), ("", "", "", b"no DICOM\r\n"), (*UIDS, FIRST)]
    for cut in range(len(body)):
        assert taken(store, [body[:cut], body[cut:]]) == expected
    assert list(store.staging_dir().iterdir()) == []


@settings(max_examples=150, deadline=None)
@given(
    data=st.lists(st.lists(st.sampled_from([b"\r", b"\n", b"-", b"x", b"Y", b"--xY", b"\r\n--", b"\0"])), max_size=4),
    cuts=st.lists(st.integers(0, 1500), max_size=8),
)
def test_any_data_cut_anywhere(
    tmp_path_factory: pytest.TempPathFactory, data: list[list[bytes]], cuts: list[int]
) -> None:
    files = [b"".join(each) for each in data]
    body = body_of(*[HEAD + FIRST + each for each in files])
    places = [0, *sorted(cuts), len(body)]
    pieces = [body[a:b] for a, b in itertools.pairwise(places)]
    store = LocalObjectStore(tmp_path_factory.getbasetemp() / "parts")
    assert taken(store, pieces) == [(*UIDS, FIRST + each) for each in files]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"--xY\r\n\r\n",
        body_of(HEAD)[:-4],
        body_of(HEAD)[:-6],
        body_of(HEAD, head=b"no colon\r\n"),
        body_of(HEAD, head=b"a: b\r\n" * 500),
        body_of(HEAD, head=b"a: " + b"b" * 100_000 + b"\r\n"),
    ],
)
def test_bodies_that_are_none(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(MalformedBody):
        taken(LocalObjectStore(tmp_path), [body])


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ('multipart/related; type="application/dicom"; boundary=xYz', ("application/dicom", b"xYz")),
        ("Multipart/Related;boundary=xYz;type=Application/DICOM", ("application/dicom", b"xYz")),
        ('multipart/related; boundary="x Y:z"', ("application/dicom", b"x Y:z")),
        ("multipart/related; type=application/dicom+json; boundary=a", ("application/dicom+json", b"a")),
        ("multipart/related", None),
        ("multipart/related; boundary=", None),
        (f"multipart/related; boundary={'b' * 73}", ("application/dicom", b"b" * 73)),
        (f"multipart/related; boundary={'b' * 201}", None),
        ("multipart/form-data; boundary=a", None),
        ("", None),
    ],
)
def test_content_types(content_type: str, expected: tuple[str, bytes] | None) -> None:
    assert multipart_of(content_type) == expected


def test_the_head_of_a_file_grows_until_it_is_read() -> None:
    file = HEAD + b"\x08\x00\x05\x00CS\x04\x00ABCD"
    whole = FileMeta(*UIDS, len(HEAD))
    for count in range(len(file)):
        expected = whole if count >= len(HEAD) + 8 else None
        assert read_file_meta(file[:count], whole=False) == expected
    assert read_file_meta(HEAD, whole=True) == whole


def element(number: int, vr: bytes, value: bytes) -> bytes:
    return b"\x02\x00" + number.to_bytes(2, "little") + vr + len(value).to_bytes(2, "little") + value


CLASS, INSTANCE, SYNTAX = (element(n, b"UI", uid.encode()) for n, uid in zip((2, 3, 16), UIDS, strict=True))
PREAMBLE = bytes(128) + b"DICM"


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", Reason.UNREADABLE),
        (bytes(200), Reason.UNREADABLE),
        (PREAMBLE, Reason.MISSING_UID),
        (PREAMBLE + CLASS + INSTANCE, Reason.MISSING_UID),
        (PREAMBLE + CLASS + SYNTAX, Reason.MISSING_UID),
        (PREAMBLE + CLASS + element(3, b"UI", b"../../x") + SYNTAX, Reason.INVALID_UID),
        (PREAMBLE + CLASS + element(3, b"UI", b"\xff.1") + SYNTAX, Reason.INVALID_UID),
        (PREAMBLE + CLASS + INSTANCE + SYNTAX[:-3], Reason.TRUNCATED),
        (PREAMBLE + b"\x02\x00\x02\x00\x1a\x00\x00\x00" + UIDS[0].encode(), Reason.UNREADABLE),
        (PREAMBLE + b"\x02\x00\x01\x00OB\x00\x00\xff\xff\xff\xff" + bytes(9), Reason.TRUNCATED),
    ],
)
def test_heads_that_cannot_be_read(head: bytes, reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        read_file_meta(head, whole=True)
    assert caught.value.reason is reason


def test_a_head_without_end_is_given_up() -> None:
    endless = PREAMBLE + b"\x02\x00\x01\x00OB\x00\x00\xff\xff\xff\xff" + bytes(MOST_HEAD)
    with pytest.raises(Refused, match=r".*"):
        read_file_meta(endless, whole=False)


def test_tolerated_heads() -> None:
    group_length = element(0, b"UL", b"\xff\xff\xff\xff")
    private = element(0x102, b"OB", b"")[:6] + b"\x00\x00" + b"\x05\x00\x00\x00" + b"abcde"
    head = PREAMBLE + group_length + CLASS + INSTANCE + private + SYNTAX
    assert read_file_meta(head, whole=True) == FileMeta(*UIDS, len(head))


KEPT, TOO_BIG = PartOutcome(UIDS[0], "2.25.1", 0), PartOutcome(UIDS[0], "2.25.2", 0xA701)
WRONG, UNNAMED = PartOutcome(UIDS[0], "2.25.3", 0xA900), PartOutcome(None, None, 0xC000)


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ([KEPT, KEPT], 200),
        ([KEPT, TOO_BIG], 202),
        ([KEPT, UNNAMED, WRONG], 202),
        ([TOO_BIG, WRONG], 409),
        ([UNNAMED], 409),
        ([TOO_BIG, TOO_BIG], 413),
    ],
)
def test_http_statuses(outcomes: list[PartOutcome], status: int) -> None:
    assert http_status(outcomes) == status


def test_the_response_lists_every_object_once() -> None:
    assert store_instances_response([KEPT, WRONG, UNNAMED]) == {
        "00081190": {"vr": "UR"},
        "00081198": {
            "vr": "SQ",
            "Value": [
                {
                    "00081150": {"vr": "UI", "Value": [UIDS[0]]},
                    "00081155": {"vr": "UI", "Value": ["2.25.3"]},
                    "00081197": {"vr": "US", "Value": [0xA900]},
                }
            ],
        },
        "00081199": {
            "vr": "SQ",
            "Value": [
                {
                    "00081150": {"vr": "UI", "Value": [UIDS[0]]},
                    "00081155": {"vr": "UI", "Value": ["2.25.1"]},
                    "00081190": {"vr": "UR"},
                }
            ],
        },
        "0008119A": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xC000]}}]},
    }
