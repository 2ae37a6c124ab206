"""Every way in which a radiograph comes, on synthetic data, and every way in which one cannot be read."""

from __future__ import annotations

import contextlib
import io
import resource
import threading
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from inference_worker.adapters.pixels import PydicomDecoder
from inference_worker.domain import Fault
from pipeline.pixel_data import frame_size

# Odd headers are the point of these tests; the parser's remarks about them are not.
pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")

DECODER = PydicomDecoder(max_pixels=4_000_000, max_bytes=64 * 2**20, parallel=2)
ROWS, COLUMNS = 48, 64
RAMP = np.tile(np.linspace(0, 4095, COLUMNS).astype(np.uint16), (ROWS, 1))
"""Dark on the left, bright on the right."""


def dataset(pixels: npt.NDArray[Any] = RAMP, bits: int = 12, **elements: Any) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "2.25.1"
    ds.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(ds, name, value)
    return ds


def saved(ds: Dataset, syntax: Any = None) -> bytes:
    buffer = io.BytesIO()
    if syntax is not None:
        ds.file_meta.TransferSyntaxUID = syntax
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def decode(data: bytes) -> npt.NDArray[np.uint8]:
    return DECODER.decode(io.BytesIO(data))


def code_of(data: bytes) -> str:
    with pytest.raises(Fault) as caught:
        decode(data)
    return caught.value.code


def rises(picture: npt.NDArray[np.uint8], tolerance: int = 3) -> bool:
    """Whether the picture is the ramp, black to white from left to right."""
    middle = picture[ROWS // 2].astype(int)
    return bool((np.diff(middle) >= -tolerance).all() and middle[0] < 10 and middle[-1] > 245)


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian], ids=lambda s: s.name
)
def test_native(syntax: Any) -> None:
    picture = decode(saved(dataset(), syntax))
    assert picture.dtype == np.uint8
    assert picture.shape == (ROWS, COLUMNS)
    assert rises(picture)


def test_big_endian() -> None:
    ds = dataset(RAMP.byteswap())
    buffer = io.BytesIO()
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    ds["PixelData"].VR = "OW"
    ds.save_as(buffer, enforce_file_format=True, little_endian=False, implicit_vr=False)
    assert rises(decode(buffer.getvalue()))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda s: s.name)
def test_lossless_compression(syntax: Any) -> None:
    ds = dataset()
    ds.compress(syntax, generate_instance_uid=False)
    assert (decode(saved(ds)) == decode(saved(dataset()))).all()


def test_jpeg_2000_lossy() -> None:
    ds = dataset()
    ds.compress(JPEG2000, j2k_cr=[4], generate_instance_uid=False)
    assert rises(decode(saved(ds)), tolerance=8)


def jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_jpeg_baseline_grey_and_colour() -> None:
    eight = (RAMP >> 4).astype(np.uint8)
    grey = dataset(eight, 8)
    grey.PixelData = encapsulate([jpeg(eight)])
    assert rises(decode(saved(grey, JPEGBaseline8Bit)), tolerance=6)
    colour = dataset(np.repeat(eight[:, :, None], 3, axis=2), 8, PhotometricInterpretation="YBR_FULL_422")
    colour.PixelData = encapsulate([jpeg(np.repeat(eight[:, :, None], 3, axis=2))])
    picture = decode(saved(colour, JPEGBaseline8Bit))
    assert picture.shape == (ROWS, COLUMNS)
    assert rises(picture, tolerance=6)


def test_colour_becomes_grey() -> None:
    eight = (RAMP >> 4).astype(np.uint8)
    assert rises(decode(saved(dataset(np.repeat(eight[:, :, None], 3, axis=2), 8))))


def test_monochrome1_is_inverted() -> None:
    picture = decode(saved(dataset(PhotometricInterpretation="MONOCHROME1")))
    assert rises(picture[:, ::-1])


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (["L", "F"], lambda picture: picture),
        (["R", "F"], np.fliplr),  # the patient's left would be reported for the right
        (["R", "H"], lambda picture: np.rot90(picture, 2)),
        (["F", "R"], lambda picture: np.rot90(picture, -1)),  # lying on the left side
        (["L"], lambda picture: picture),
        (None, lambda picture: picture),
    ],
)
def test_patient_orientation(orientation: Any, turned: Callable[[Any], Any]) -> None:
    expected = turned(decode(saved(dataset())))
    np.testing.assert_array_equal(decode(saved(dataset(PatientOrientation=orientation))), expected)


def test_signed_values_and_rescale() -> None:
    signed = (RAMP.astype(np.int16) - 2048).astype(np.int16)
    ds = dataset(signed, 16, RescaleSlope=2, RescaleIntercept=100, WindowCenter=100, WindowWidth=8190)
    assert rises(decode(saved(ds)))


@pytest.mark.parametrize("compressed", [False, True], ids=["native", "RLE"])
@pytest.mark.parametrize("elements", [{}, {"WindowCenter": 2048, "WindowWidth": 4096}], ids=["no window", "window"])
def test_stored_values_in_the_high_bits(elements: dict[str, Any], compressed: bool) -> None:
    noise = np.arange(COLUMNS, dtype=np.uint16) % 16  # an overlay, say
    signed = ((RAMP.astype(np.int32) - 2048) << 4).astype(np.int16)
    around_zero = elements and elements | {"WindowCenter": 0}
    for ds in (
        dataset(RAMP << 4, 12, **{"HighBit": 15} | elements),
        dataset(RAMP << 4 | noise, 12, **{"HighBit": 15} | elements),
        dataset(RAMP << 2 | noise % 4, 12, **{"HighBit": 13} | elements),
        dataset(signed, 12, **{"HighBit": 15} | around_zero),
        dataset(RAMP, 12, **{"HighBit": 15} | elements),  # a header that is wrong
        dataset(signed >> 4, 12, **{"HighBit": 15} | around_zero),
    ):
        if compressed:
            ds.compress(RLELossless, generate_instance_uid=False)
        assert rises(decode(saved(ds)))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT"])
def test_window_clips(function: str) -> None:
    picture = decode(saved(dataset(WindowCenter=2048, WindowWidth=1024, VOILUTFunction=function)))
    row = picture[0]
    assert (row[RAMP[0] < 1500] == 0).all()
    assert (row[RAMP[0] > 2600] == 255).all()
    assert abs(int(row[np.abs(RAMP[0].astype(int) - 2048).argmin()]) - 127) < 10


def test_sigmoid_window() -> None:
    row = decode(saved(dataset(WindowCenter=2048, WindowWidth=2048, VOILUTFunction="SIGMOID")))[0]
    assert row[0] < 8
    assert row[-1] > 247
    assert 100 < row[COLUMNS // 2] < 156


def test_voi_lut_sequence() -> None:
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 8]
    item.add_new("LUTData", "OW", np.linspace(255, 0, 4096).astype("<u2").tobytes())
    ds = dataset()
    ds.VOILUTSequence = [item]
    assert rises(decode(saved(ds))[:, ::-1])
    del ds.VOILUTSequence
    ds.ModalityLUTSequence = [item]
    assert rises(decode(saved(ds))[:, ::-1])
    item.LUTDescriptor = [4096, 0]
    assert rises(decode(saved(ds)))


def with_table(
    syntax: Any, sequence: str, entries: npt.NDArray[np.uint16], bits: int, vr: str = "OW", **elements: Any
) -> bytes:
    """A file with a lookup table of 4,096 entries in the byte order of its transfer syntax."""
    order = "<" if syntax.is_little_endian else ">"
    item = Dataset()
    item.LUTDescriptor = [4096, 0, bits]
    item.add_new("LUTData", vr, entries.astype(f"{order}u2").tobytes() if vr == "OW" else entries.tolist())
    ds = dataset(RAMP.astype(f"{order}u2"), **elements)
    setattr(ds, sequence, [item])
    ds["PixelData"].VR = "OW"
    ds.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("vr", ["OW", "US"])
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_table_says_the_same_in_every_byte_order(sequence: str, vr: str) -> None:
    table = (np.linspace(0, 1, 4096) ** 3 * 65535)[::-1].astype(np.uint16)
    window = {"WindowCenter": 32768, "WindowWidth": 65536}
    expected = table[RAMP] / 257
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian):
        picture = decode(with_table(syntax, sequence, table, 16, vr, **window))
        assert np.abs(picture - expected).max() <= 1


@pytest.mark.parametrize("vr", ["OW", "US"])
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_table_of_bytes_has_two_to_a_word(sequence: str, vr: str) -> None:
    table = (np.linspace(0, 1, 4096) ** 3 * 255)[::-1].astype(np.uint8)
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian):
        picture = decode(with_table(syntax, sequence, table.view("<u2"), 8, vr, WindowCenter=128, WindowWidth=256))
        assert np.abs(picture.astype(int) - table[RAMP]).max() <= 1


@pytest.mark.parametrize(
    ("center", "width"), [(90_000, 10), (-5000, 100), (2048, 0), (2048, -1), ("", ""), ([2048, 99], [4096, 9])]
)
def test_a_window_that_leaves_nothing_is_not_believed(center: Any, width: Any) -> None:
    assert rises(decode(saved(dataset(WindowCenter=center, WindowWidth=width))))


def test_eight_bits_without_a_window_stay_as_they_are() -> None:
    eight = np.clip(RAMP >> 4, 40, 200).astype(np.uint8)
    assert (decode(saved(dataset(eight, 8))) == eight).all()


def test_eight_bits_that_mean_other_values_are_stretched() -> None:
    eight = (RAMP >> 4).astype(np.uint8)
    assert rises(decode(saved(dataset(eight, 8, RescaleSlope=16, RescaleIntercept=0))))
    assert rises(decode(saved(dataset((eight.astype(np.int16) - 128).astype(np.int8), 8))))
    item = Dataset()
    item.LUTDescriptor = [256, 0, 16]
    item.add_new("LUTData", "OW", np.linspace(0, 65535, 256).astype("<u2").tobytes())
    assert rises(decode(saved(dataset(eight, 8, ModalityLUTSequence=[item]))))


def test_a_window_that_shows_nothing_but_the_padding_is_not_believed() -> None:
    padded = RAMP // 4 + 1000
    padded[:, :8] = 65535
    picture = decode(saved(dataset(padded, 16, PixelPaddingValue=65535, WindowCenter=50_000, WindowWidth=100)))
    assert (picture[:, :8] == 0).all()
    assert picture[:, 9].max() < 20
    assert picture[:, -1].min() > 245


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian], ids=lambda s: s.name)
@pytest.mark.parametrize("signed", [False, True], ids=["by rescale", "stored"])
def test_a_table_that_begins_below_nothing(signed: bool, syntax: Any) -> None:
    table = (np.linspace(0, 1, 4096) ** 3 * 4095).astype(np.uint16)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 65536 - 2048, 12])  # -2048, as implicit VR writes it
    item.add_new("LUTData", "OW", table.astype("<u2").tobytes())
    stored = (RAMP.astype(np.int32) - 2048).astype(np.int16) if signed else RAMP
    rescale = {"RescaleSlope": 1, "RescaleIntercept": 0 if signed else -2048}
    picture = decode(saved(dataset(stored, 16, VOILUTSequence=[item], **rescale), syntax))
    assert np.abs(picture - table[RAMP] / 4095 * 255).max() <= 1
    if signed:
        window = {"WindowCenter": 2048, "WindowWidth": 4096}
        picture = decode(saved(dataset(stored, 16, ModalityLUTSequence=[item], **window), syntax))
        assert np.abs(picture - table[RAMP] / 4095 * 255).max() <= 1


def test_padding_is_black_and_does_not_stretch_the_scale() -> None:
    padded = RAMP.astype(np.uint16) // 4 + 1000
    padded[:, :8] = 65535
    ds = dataset(padded, 16, PixelPaddingValue=65535, PhotometricInterpretation="MONOCHROME2")
    picture = decode(saved(ds))
    assert (picture[:, :8] == 0).all()
    assert picture[:, 9].max() < 20
    assert picture[:, -1].min() > 245


def test_a_flat_image_and_a_huge_range() -> None:
    assert decode(saved(dataset(np.full((8, 8), 7, np.uint16)))).shape == (8, 8)
    assert decode(saved(dataset(RescaleSlope="1e30", RescaleIntercept="nan"))).shape == (ROWS, COLUMNS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_make_no_picture(bad: float) -> None:
    ds = dataset()
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        del ds[name]
    ds.BitsAllocated = 32
    values = RAMP.astype("<f4")
    ds.FloatPixelData = values.tobytes()
    assert rises(decode(saved(ds)))
    values[0, 0] = bad
    ds.FloatPixelData = values.tobytes()
    assert code_of(saved(ds)) == "pixels_undecodable"


def test_more_pixels_than_any_model_looks_at_are_averaged() -> None:
    wide = PydicomDecoder(max_pixels=64_000_000, max_bytes=2**28, parallel=1)
    big = np.tile(np.linspace(0, 4095, 5000).astype(np.uint16), (4000, 1))
    picture = wide.decode(io.BytesIO(saved(dataset(big))))
    assert picture.shape == (2000, 2500)
    assert picture[0, 0] < 5
    assert picture[0, -1] > 250


def test_who_waits_too_long_for_a_turn_is_told_so() -> None:
    inside, let_go = threading.Event(), threading.Event()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            inside.set()
            let_go.wait(120)
            return super().read(size)

    single = PydicomDecoder(max_pixels=4_000_000, max_bytes=64 * 2**20, parallel=1)
    data = saved(dataset())
    other = threading.Thread(target=single.decode, args=(Slow(data),))
    other.start()
    assert inside.wait(120)
    for timeout in (0.01, 0.0, -1.0):
        with pytest.raises(Fault, match="deadline_exceeded"):
            single.decode(io.BytesIO(data), timeout)
    let_go.set()
    other.join(120)
    assert rises(single.decode(io.BytesIO(data), 60.0))


# --- what cannot be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"\x00" * 128 + b"DICM", b"\x00" * 128 + b"DICM" + b"\xff" * 500, saved(dataset())[140:]],
    ids=["empty", "text", "preamble only", "garbage behind the preamble", "no file meta"],
)
def test_not_dicom(data: bytes) -> None:
    assert code_of(data) in ("not_dicom", "no_pixel_data")


def test_truncated_at_any_place_ends_in_a_code() -> None:
    whole = saved(dataset())
    for end in range(0, len(whole) - 1, 97):
        assert code_of(whole[:end]) in ("not_dicom", "no_pixel_data", "pixels_undecodable")


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"Rows": 20_000, "Columns": 20_000}, "image_too_large"),
        ({"Rows": 65_535, "Columns": 65_535}, "image_too_large"),
        ({"Rows": ROWS * 2}, "pixels_undecodable"),
        ({"Rows": 0}, "pixels_undecodable"),
        ({"BitsAllocated": 7}, "pixels_undecodable"),
        ({"SamplesPerPixel": 4}, "pixels_undecodable"),
        ({"NumberOfFrames": 10}, "multi_frame"),
        ({"PixelData": b""}, "no_pixel_data"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "pixels_undecodable"),
    ],
)
def test_headers_that_do_not_fit(elements: dict[str, Any], expected: str) -> None:
    assert code_of(saved(dataset(**elements))) == expected


def test_no_pixel_data() -> None:
    ds = dataset()
    del ds.PixelData
    assert code_of(saved(ds)) == "no_pixel_data"


def test_a_small_header_before_a_huge_frame_allocates_nothing() -> None:
    eight = (RAMP >> 4).astype(np.uint8)
    frame = bytearray(jpeg(eight))
    at = frame.index(b"\xff\xc0") + 5
    frame[at : at + 4] = (20_000).to_bytes(2, "big") * 2
    ds = dataset(eight, 8)
    ds.PixelData = encapsulate([bytes(frame)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert code_of(saved(ds, JPEGBaseline8Bit)) == "image_too_large"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes
    frame[at : at + 4] = (500).to_bytes(2, "big") * 2
    ds.PixelData = encapsulate([bytes(frame)])
    assert code_of(saved(ds, JPEGBaseline8Bit)) == "pixels_undecodable"


def test_a_deflate_bomb_allocates_nothing() -> None:
    whole = saved(dataset(), DeflatedExplicitVRLittleEndian)
    meta = whole[: 144 + int.from_bytes(whole[140:144], "little")]
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(deflater.compress(b"\0" * 2**20) for _ in range(200)) + deflater.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert code_of(meta + bomb) == "image_too_large"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda s: s.name)
def test_a_damaged_frame_ends_in_a_code_or_a_picture(syntax: Any) -> None:
    ds = dataset()
    ds.compress(syntax, generate_instance_uid=False)
    whole = bytearray(saved(ds))
    for cut in (20, 100):
        with_hole = whole[:-cut] + bytes(cut)
        with contextlib.suppress(Fault):
            assert decode(bytes(with_hole)).shape == (ROWS, COLUMNS)


def test_frame_sizes_are_read_from_the_frame() -> None:
    eight = (RAMP >> 4).astype(np.uint8)
    assert frame_size(jpeg(eight)) == (ROWS, COLUMNS, 1)
    for syntax in (JPEGLSLossless, JPEG2000Lossless):
        ds = dataset()
        ds.compress(syntax, generate_instance_uid=False)
        from pydicom.encaps import get_frame

        assert frame_size(get_frame(ds.PixelData, 0, number_of_frames=1)) == (ROWS, COLUMNS, 1)
    assert frame_size(b"\xff\xd8\xff") is None
    assert frame_size(b"") is None
