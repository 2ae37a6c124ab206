"""What compressed frames say of themselves, on bytes alone; the decoders' own tests are the services'."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from pipeline.pixel_data import frame_size, in_lowest_bits, rle_fits, upright

DQT = b"\xff\xdb\0\4\0\0"
SOS = b"\xff\xda\0\4\0\0"


def sof(rows: int, columns: int, components: int = 1, marker: int = 0xC0) -> bytes:
    body = struct.pack(">BHHB", 8, rows, columns, components) + b"\1\x11\0" * components
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def j2k(rows: int, columns: int, components: int = 1, left: int = 0) -> bytes:
    return b"\xff\x4f\xff\x51" + struct.pack(
        ">HHIIIIIIIIH", 41, 0, columns + left, rows, left, 0, 0, 0, 0, 0, components
    )


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC2, 0xC3, 0xF7])
@pytest.mark.parametrize("junk", [b"", b"\0", b"\x12\x34", b"\xff", b"\xff\x01", b"\xff\xd3", b"\xff\0", DQT])
def test_the_size_of_a_jpeg(junk: bytes, marker: int) -> None:
    assert frame_size(b"\xff\xd8" + junk + DQT + junk + sof(30, 50, 3, marker) + junk + SOS) == (30, 50, 3)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0\0\x10",
        b"\xff\xd8" + DQT + SOS,
        b"\xff\xd8" + sof(3, 5) + sof(3, 5) + SOS,
        b"\xff\xd8\xff\xd8" + sof(3, 5) + SOS,
        b"\xff\xd8" + sof(3, 5),
        b"\xff\xd8" + sof(3, 5)[:7],
        b"\xff\xd8" + sof(9, 9, marker=0xDE) + sof(3, 5) + SOS,
        b"\xff\xd8\xff\xdb\0\0" + sof(3, 5) + SOS,
        b"\0" + b"\xff\xd8" + sof(3, 5) + SOS,
        j2k(3, 5)[:41],
        b"\0" + j2k(3, 5),
        b"\0\0\0\x0cjP  \r\n\x87\n" + box(b"xml ", j2k(3, 5)),
        b"\0\0\0\x0cjP  \r\n\x87\n" + box(b"jp2h", box(b"pclr", b"")) + box(b"jp2c", j2k(3, 5)),
        b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\0free" + box(b"jp2c", j2k(3, 5)),
    ],
)
def test_frames_without_a_size_of_their_own(frame: bytes) -> None:
    assert frame_size(frame) is None


def test_the_size_of_a_jpeg_2000() -> None:
    assert frame_size(j2k(30, 50, 3, left=7)) == (30, 50, 3)
    in_a_file = b"\0\0\0\x0cjP  \r\n\x87\n" + box(b"xml ", j2k(3, 5)) + box(b"jp2c", j2k(30, 50))
    assert frame_size(in_a_file) == (30, 50, 1)


def run_lengths(*segments: bytes) -> bytes:
    offsets = [64]
    for segment in segments[:-1]:
        offsets.append(offsets[-1] + len(segment))
    return struct.pack("<16I", len(segments), *[*offsets, *[0] * 15][:15]) + b"".join(segments)


def test_run_lengths() -> None:
    full, bomb = b"\x81\7" * 80, b"\x81\7" * 8_000
    assert rle_fits(run_lengths(full, full), 80 * 128, 2)
    assert rle_fits(run_lengths(b"\x80" + full + b"\x81\7", full + bytes(500)), 80 * 128, 2)
    for frame in (
        run_lengths(full),
        run_lengths(bomb, full),
        run_lengths(full, bomb),
        run_lengths(full, full)[:60],
        b"",
    ):
        assert not rle_fits(frame, 80 * 128, 2)


@pytest.mark.parametrize("signed", [False, True])
def test_values_that_lie_above_the_lowest_bits(signed: bool) -> None:
    values = np.arange(-8, 8, dtype=np.int16) if signed else np.arange(16, dtype=np.uint16)
    stored = values << 4

    def decoded(lies_high: bool, high_bit: int) -> Any:
        def decode(bits_stored: int = 4) -> Any:
            words = stored if lies_high else values
            return words << (16 - bits_stored) >> (16 - bits_stored)

        return in_lowest_bits(decode, bits_allocated=16, bits_stored=4, high_bit=high_bit, signed=signed)

    assert (decoded(True, 7) == values).all()
    assert (decoded(False, 7) == values).all()  # a header that is wrong
    for nonsense in (3, 0, 16, 99):
        assert (decoded(False, nonsense) == values).all()


LENGTH = {"horizontal": 3, "vertical": 2}
AXIS = {"L": "horizontal", "R": "horizontal", "P": "horizontal", "A": "horizontal", "F": "vertical", "H": "vertical"}
BODY = np.arange(6).reshape(2, 3)
"""Two places from head to foot, three from the patient's right to the left, or from front to back."""


def seen(rows: str, columns: str) -> Any:
    """The body in a picture whose rows and columns run to these sides of it."""
    picture = np.empty((LENGTH[AXIS[columns]], LENGTH[AXIS[rows]]), int)
    for down in range(picture.shape[0]):
        for right in range(picture.shape[1]):
            place = {}
            for direction, step in ((rows, right), (columns, down)):
                axis = AXIS[direction]
                place[axis] = step if direction in "LPF" else LENGTH[axis] - 1 - step
            picture[down, right] = BODY[place["vertical"], place["horizontal"]]
    return picture


@pytest.mark.parametrize("across", ["L", "R", "P", "A"])
@pytest.mark.parametrize("along", ["F", "H"])
def test_a_picture_is_turned_upright(across: str, along: str) -> None:
    for orientation in ((across, along), (along, across)):
        picture = seen(*orientation)
        for written in (orientation, [f"{value.lower()}X " for value in orientation]):
            turned = upright(picture, written)
            np.testing.assert_array_equal(turned, BODY)
            assert all(stride > 0 for stride in turned.strides)
            colour = np.stack([picture, picture + 10, picture + 20], axis=2)
            np.testing.assert_array_equal(upright(colour, written), np.stack([BODY, BODY + 10, BODY + 20], axis=2))


@pytest.mark.parametrize(
    "orientation",
    [None, "", "L", "R", ["R"], ["L", "R"], ["F", "H"], ["R", "X"], ["", ""], [None, "H"], list("RHL"), 7],
)
def test_an_orientation_that_says_nothing_changes_nothing(orientation: object) -> None:
    assert upright(BODY, orientation) is BODY
