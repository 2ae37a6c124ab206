"""Every compression that a radiograph may come in, times every way in which its values may be meant."""

from __future__ import annotations

import base64
import contextlib
import itertools
import resource
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import convert_color_space
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from inference_worker.domain import Fault
from unit.inference_worker.test_pixels import COLUMNS, RAMP, ROWS, code_of, dataset, decode, jpeg, rises, saved

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")

# The ramp in High-Throughput JPEG 2000, made with OpenJPH 0.26.3: no encoder of it is among this project's packages.
HTJ2K_LOSSLESS = base64.b64decode(
    "/0//UQApQAAAAABAAAAAMAAAAAAAAAAAAAAAQAAAADAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQ"
    "kJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAI4AAf+TwAArAP9//3/b2tvaAoG0AMAAE4BIQcoDAnQAwAAVQKKI"
    "IsqgojKCdgDAABXAUKBAgQIFyueKenICdwDAABa4IiIiIiIiIiIiIiIi+f4Kenp6enGCewDAAC6YAAAAAAAAAAAAAAAAAAAAAAAAAAAA/r/6"
    "enp6enp6enp6enECcQH/2Q=="
)
HTJ2K_LOSSY = base64.b64decode(
    "/0//UQApQAAAAABAAAAAMAAAAAAAAAAAAAAAQAAAADAAAAAAAAAAAAABDwEB/1AACAACAAAAIP9SAAwAAgABAAUEBEAA/1wAIyI3GDbqNuo2"
    "vC8ALwAu4idMJ0wnZBADEAMQRhfSF9IXYf9kABcAAU9wZW5KUEggVmVyIDAuMjYuMy7/kAAKAAAAAAAbAAH/k8Ew/3v+YbMAAAAAAAD/2Q=="
)

EIGHT = (RAMP >> 4).astype(np.uint8)
SIGNED = (RAMP.astype(np.int32) - 2048).astype(np.int16)
VALUES: dict[str, tuple[npt.NDArray[Any], int, dict[str, Any]]] = {
    "12 bits": (RAMP, 12, {}),
    "8 bits": (EIGHT, 8, {}),
    "16 bits": (RAMP << 4, 16, {}),
    "signed": (SIGNED, 16, {}),
    "signed with rescale": (SIGNED, 16, {"RescaleSlope": 1, "RescaleIntercept": 2048}),
    "window": (RAMP, 12, {"WindowCenter": 2048, "WindowWidth": 4096}),
    "inverted": (RAMP[:, ::-1].copy(), 12, {"PhotometricInterpretation": "MONOCHROME1"}),
    "inverted, signed": (SIGNED[:, ::-1].copy(), 16, {"PhotometricInterpretation": "MONOCHROME1"}),
    "inverted with a window": (
        RAMP[:, ::-1].copy(),
        12,
        {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 2048, "WindowWidth": 4096},
    ),
}
SYNTAXES: dict[Any, dict[str, Any]] = {
    ExplicitVRLittleEndian: {},
    ImplicitVRLittleEndian: {},
    DeflatedExplicitVRLittleEndian: {},
    RLELossless: {},
    JPEGLSLossless: {},
    JPEGLSNearLossless: {"jls_error": 2},
    JPEG2000Lossless: {},
    JPEG2000: {"j2k_cr": [4]},
}


@pytest.mark.parametrize("name", list(VALUES))
@pytest.mark.parametrize("syntax", list(SYNTAXES), ids=lambda syntax: syntax.keyword)
def test_every_compression_of_every_kind_of_value(syntax: Any, name: str) -> None:
    pixels, bits, elements = VALUES[name]
    ds = dataset(pixels, bits, **elements)
    if syntax.is_encapsulated:
        ds.compress(syntax, generate_instance_uid=False, **SYNTAXES[syntax])
        assert rises(decode(saved(ds)), tolerance=8)
    else:
        assert rises(decode(saved(ds, syntax)))


@pytest.mark.parametrize(
    ("syntax", "frame"),
    [(HTJ2KLossless, HTJ2K_LOSSLESS), (HTJ2K, HTJ2K_LOSSY)],
    ids=["HTJ2KLossless", "HTJ2K"],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_high_throughput_jpeg_2000(syntax: Any, frame: bytes, photometric: str) -> None:
    ds = dataset(PhotometricInterpretation=photometric)
    ds.PixelData = encapsulate([frame])
    picture = decode(saved(ds, syntax))
    assert rises(picture[:, ::-1] if photometric == "MONOCHROME1" else picture, tolerance=8)


COLOUR = np.repeat(EIGHT[:, :, None], 3, axis=2)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda syntax: syntax.keyword)
def test_colour_in_every_compression(syntax: Any) -> None:
    ds = dataset(COLOUR, 8)
    if syntax == JPEG2000Lossless:
        ds.PhotometricInterpretation = "RGB"
    ds.compress(syntax, generate_instance_uid=False)
    picture = decode(saved(ds))
    assert picture.shape == (ROWS, COLUMNS)
    assert rises(picture)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_colour_by_pixel_and_by_plane(photometric: str, planar: int) -> None:
    colour = COLOUR if photometric == "RGB" else convert_color_space(COLOUR, "RGB", "YBR_FULL")
    ds = dataset(colour, 8, PhotometricInterpretation=photometric, PlanarConfiguration=planar)
    if planar:
        ds.PixelData = np.ascontiguousarray(colour.transpose(2, 0, 1)).tobytes()
    assert rises(decode(saved(ds)))


def test_a_palette() -> None:
    ds = dataset(EIGHT, 8, PhotometricInterpretation="PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(ds, f"{name}PaletteColorLookupTableData", np.linspace(65535, 0, 256).astype("<u2").tobytes())
    assert rises(decode(saved(ds))[:, ::-1])


def test_other_data_in_the_bits_above_the_stored_ones() -> None:
    with_overlay = RAMP | np.where(np.arange(COLUMNS) % 2, 0x8000, 0).astype(np.uint16)
    assert rises(decode(saved(dataset(with_overlay))))


# --- frames that lie about themselves ---------------------------------------------------------------------------


def compressed(syntax: Any) -> tuple[Any, bytearray]:
    ds = dataset()
    ds.compress(syntax, generate_instance_uid=False)
    return ds, bytearray(get_frame(ds.PixelData, 0, number_of_frames=1))


def rebuilt(ds: Any, frame: bytes) -> bytes:
    ds.PixelData = encapsulate([bytes(frame)])
    return saved(ds)


@pytest.mark.parametrize(
    ("syntax", "marker", "place", "size"),
    [
        (JPEGLSLossless, b"\xff\xf7", 5, struct.pack(">HH", 60_000, 60_000)),
        (JPEG2000Lossless, b"\xff\x51", 6, struct.pack(">II", 2**31, 2**31)),
        (JPEG2000Lossless, b"\xff\x51", 38, struct.pack(">H", 16_384)),  # components
    ],
    ids=["JPEG-LS", "JPEG 2000", "JPEG 2000 with thousands of components"],
)
def test_a_frame_that_claims_to_be_huge_allocates_nothing(syntax: Any, marker: bytes, place: int, size: bytes) -> None:
    ds, frame = compressed(syntax)
    at = frame.index(marker) + place
    frame[at : at + len(size)] = size
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert code_of(rebuilt(ds, frame)) in ("image_too_large", "pixels_undecodable")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


JUNK = {
    "a stray byte": b"\0",
    "stray bytes": b"\x12\x34\x56",
    "fill bytes": b"\xff\xff",
    "TEM": b"\xff\x01",
    "a restart marker": b"\xff\xd3",
    "a stuffed zero": b"\xff\0",
    "a reserved marker": b"\xff\x02",
}


@pytest.mark.parametrize("junk", list(JUNK.values()), ids=list(JUNK))
def test_what_decoders_pass_over_hides_no_size(junk: bytes) -> None:
    frame = jpeg(EIGHT)
    for start in (b"\xff\xd8", b"\xff\xdb", b"\xff\xc0"):  # behind SOI; before the tables; before the frame header
        at = frame.index(start) + 2 * (start == b"\xff\xd8")
        ds, with_junk = dataset(EIGHT, 8), bytearray(frame[:at] + junk + frame[at:])
        ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        assert rises(decode(rebuilt(ds, with_junk)), tolerance=6)
        size = with_junk.index(b"\xff\xc0") + 5
        with_junk[size : size + 4] = struct.pack(">HH", 9_000, 9_000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert code_of(rebuilt(ds, with_junk)) == "image_too_large"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


def refused_undecoded(monkeypatch: pytest.MonkeyPatch, data: bytes) -> bool:
    """Whether the pixels are refused before any decoder sees them."""
    with monkeypatch.context() as patch:
        patch.setattr("inference_worker.adapters.pixels.pixel_array", lambda *_, **__: pytest.fail("was decoded"))
        return code_of(data) == "pixels_undecodable"


def test_a_jpeg_without_a_size_of_its_own_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = jpeg(EIGHT)
    header = frame.index(b"\xff\xc0")
    sof = frame[header : header + 13]
    ds = dataset(EIGHT, 8)
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    for other in (
        frame[:header] + b"\xff\xde" + sof[2:] + frame[header:],  # hierarchical: each frame has another size
        frame[:header] + sof + frame[header:],  # two frame headers
        frame[:2] + frame,  # an image that begins twice
        frame[:header] + frame[header + 13 :],  # none
        frame[2:],
    ):
        assert refused_undecoded(monkeypatch, rebuilt(ds, other))


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def jp2(codestream: bytes, before: bytes = b"", header: bytes = b"") -> bytes:
    """A codestream in the file format that some writers leave around it."""
    size = box(b"ihdr", struct.pack(">IIHBBBB", ROWS, COLUMNS, 1, 15, 7, 0, 0))
    size += box(b"colr", struct.pack(">BBBI", 1, 0, 0, 17)) + header
    start = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return start + before + box(b"jp2h", size) + box(b"jp2c", codestream)


def test_jpeg_2000_in_a_file_format(monkeypatch: pytest.MonkeyPatch) -> None:
    ds, frame = compressed(JPEG2000Lossless)
    assert rises(decode(rebuilt(ds, jp2(bytes(frame)))))
    huge = bytearray(frame)
    huge[8:16] = struct.pack(">II", 60_000, 60_000)
    assert code_of(rebuilt(ds, jp2(bytes(huge), before=box(b"xml ", bytes(frame))))) == "image_too_large"
    palette = box(b"pclr", struct.pack(">HB", 1, 255) + b"\7" * 255 + b"\0" * 255)
    assert refused_undecoded(monkeypatch, rebuilt(ds, jp2(bytes(frame), header=palette)))
    endless = jp2(bytes(frame), before=b"\0\0\0\0free")  # a parser that goes on by this length never ends
    assert refused_undecoded(monkeypatch, rebuilt(ds, endless))
    for end in (0, 4, 12, 41):
        assert refused_undecoded(monkeypatch, rebuilt(ds, frame[:end] or b"\0\0"))


def test_an_extended_offset_table_shows_the_decoder_no_other_frame() -> None:
    frame, ds = jpeg(EIGHT), dataset(EIGHT, 8)
    huge = bytearray(frame)
    size = huge.index(b"\xff\xc0") + 5
    huge[size : size + 4] = struct.pack(">HH", 3_000, 3_000)
    ds.PixelData = encapsulate([frame, bytes(huge)], has_bot=False)
    at = len(frame) + len(frame) % 2 + 8
    ds.ExtendedOffsetTable = struct.pack("<Q", at)
    ds.ExtendedOffsetTableLengths = struct.pack("<Q", len(huge))
    assert rises(decode(saved(ds, JPEGBaseline8Bit)), tolerance=6)


def run_lengths(*segments: bytes) -> bytes:
    """A frame of such segments (PS3.5 annex G)."""
    offsets = itertools.accumulate(map(len, segments[:-1]), initial=64)
    return struct.pack("<I", len(segments)) + struct.pack("<15I", *[*offsets, *[0] * 15][:15]) + b"".join(segments)


@pytest.mark.parametrize(
    "frame",
    [
        run_lengths(b"\x81\0" * (ROWS * COLUMNS), b"\x81\0" * (ROWS * COLUMNS)),
        run_lengths(b"\x81\0" * (ROWS * COLUMNS // 128), b"\x81\0" * (3 * ROWS * COLUMNS // 2)),
        run_lengths(b"\x81\0" * (ROWS * COLUMNS // 128)),
        run_lengths(*[b"\x81\0" * (ROWS * COLUMNS // 128)] * 15),
        b"\x02",
    ],
    ids=["all of it", "the last segment", "a segment short", "segments too many", "no header"],
)
def test_a_run_length_bomb_is_not_unfolded(monkeypatch: pytest.MonkeyPatch, frame: bytes) -> None:
    ds, _ = compressed(RLELossless)
    assert refused_undecoded(monkeypatch, rebuilt(ds, frame))


def test_run_lengths_that_end_late() -> None:
    """Padding, a last run longer than the picture, and the command that does nothing, as poor writers leave them."""
    ds, frame = compressed(RLELossless)
    first, second = struct.unpack_from("<II", frame, 4)
    high, low = bytes(frame[first:second]), bytes(frame[second:])
    assert rises(decode(rebuilt(ds, run_lengths(b"\x80" + high + b"\x81\7", low + b"\0" * 500))))
    singly = b"".join(bytes((0, byte)) for byte in (RAMP & 255).astype(np.uint8).tobytes())
    assert rises(decode(rebuilt(ds, run_lengths(high, singly))))


def test_a_frame_of_another_compression_than_the_header_says() -> None:
    """Decoders must not be led astray: a code, or the picture where the decoder knows better."""
    names = (RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1)
    frames = {syntax: compressed(syntax) for syntax in names[:3]}
    for inside, said in itertools.product(frames, names):
        if inside != said:
            ds, frame = frames[inside]
            ds.file_meta.TransferSyntaxUID = said
            data = rebuilt(ds, frame)
            with contextlib.suppress(Fault):
                assert decode(data).shape == (ROWS, COLUMNS), (inside, said)
