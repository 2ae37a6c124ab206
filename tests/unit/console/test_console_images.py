"""DICOM to PNG: what white is, and what is refused before it is decoded."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from console.adapters.image_service import ImageService
from console.adapters.pixels import MAX_SIDE, NotShown, render_png
from pipeline.errors import ObjectStoreUnavailable
from pipeline.store import LocalObjectStore
from unit.console.study_events import StudyEvents
from unit.console.web_client import Console

LIMIT = 4_000_000


def dicom(pixels: npt.NDArray[Any], syntax: Any = ExplicitVRLittleEndian, **attributes: Any) -> bytes:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = "2.25.1"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    ds.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    if syntax == JPEGBaseline8Bit:
        ds.PixelData = encapsulate([encoded(pixels, "JPEG")])
    elif syntax == JPEG2000Lossless:
        ds.PixelData = encapsulate([encoded(pixels, "JPEG2000", no_jp2=True)])
    else:
        ds.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(ds, name, value)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def encoded(pixels: npt.NDArray[Any], kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=kind, **options)
    return out.getvalue()


def shown(data: bytes, max_pixels: int = LIMIT) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(render_png(io.BytesIO(data), max_pixels))))


def ramp(dtype: str, high: int) -> npt.NDArray[Any]:
    return np.linspace(0, high, 64 * 64).reshape(64, 64).astype(dtype)


def test_high_values_are_white_in_monochrome2_and_black_in_monochrome1() -> None:
    pixels = ramp("uint16", 4095)
    bright = shown(dicom(pixels))
    dark = shown(dicom(pixels, PhotometricInterpretation="MONOCHROME1"))
    assert bright[0, 0] == 0
    assert bright[-1, -1] == 255
    assert np.array_equal(bright, 255 - dark)


def test_a_mirrored_image_is_shown_with_the_left_side_on_the_right() -> None:
    pixels = ramp("uint16", 4095)
    assert np.array_equal(shown(dicom(pixels, PatientOrientation=["R", "F"])), np.fliplr(shown(dicom(pixels))))


def test_the_image_s_own_window_counts_after_rescaling() -> None:
    pixels = ramp("int16", 2000)
    picture = shown(dicom(pixels, RescaleSlope=1, RescaleIntercept=-1000, WindowCenter=[0, 5], WindowWidth=[500, 5]))
    assert picture[pixels < 700].max() == 0
    assert picture[pixels > 1300].min() == 255
    assert 120 < picture[pixels == 1000].mean() < 135


@pytest.mark.parametrize("width", [0, "", None])
def test_a_window_of_no_width_is_passed_over(width: object) -> None:
    picture = shown(dicom(ramp("uint16", 4095), WindowCenter=40, WindowWidth=width))
    assert picture.min() == 0
    assert picture.max() == 255


def test_a_flat_image_is_shown() -> None:
    assert shown(dicom(np.full((8, 8), 7, dtype="uint8"))).shape == (8, 8)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000Lossless, DeflatedExplicitVRLittleEndian])
def test_compressed_images(syntax: Any) -> None:
    picture = shown(dicom(ramp("uint8", 255), syntax)).astype(int)
    assert np.abs(picture - ramp("uint8", 255)).max() < 8


def test_colour() -> None:
    pixels = np.zeros((4, 4, 3), dtype="uint8")
    pixels[..., 0] = 200
    assert shown(dicom(pixels))[0, 0].tolist() == [200, 0, 0]


def test_only_the_first_frame() -> None:
    pixels = np.zeros((4, 4), dtype="uint8")
    pixels[0] = 255
    both = pixels.tobytes() + bytes(16)
    assert shown(dicom(pixels, NumberOfFrames=2, PixelData=both)).shape == (4, 4)


@pytest.mark.parametrize("shape", [(3000, 1100), (1025, 10), (700, 2100)])
def test_large_images_are_reduced_in_proportion(shape: tuple[int, int]) -> None:
    picture = shown(dicom(np.zeros(shape, dtype="uint8")))
    assert max(picture.shape) == MAX_SIDE
    assert picture.shape[0] / picture.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.06)


def code_of(data: bytes, max_pixels: int = LIMIT) -> str:
    with pytest.raises(NotShown) as caught:
        render_png(io.BytesIO(data), max_pixels)
    return caught.value.code


def test_a_bomb_is_refused_by_its_header() -> None:
    assert code_of(dicom(np.zeros((8, 8), dtype="uint16"), Rows=20000, Columns=20000)) == "too_many_pixels"


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000Lossless])
def test_a_bomb_inside_the_compressed_frame_is_refused(syntax: Any) -> None:
    assert code_of(dicom(np.zeros((512, 512), dtype="uint8"), syntax, Rows=8, Columns=8)) == "pixels_undecodable"


def test_a_deflated_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("console.adapters.pixels.MAX_FILE_BYTES", 1_000_000)
    data = dicom(np.zeros((1400, 1400), dtype="uint8"), DeflatedExplicitVRLittleEndian)
    assert len(data) < 20_000
    assert code_of(data) == "too_large"


def test_what_is_no_image_is_refused_with_a_code() -> None:
    good = dicom(ramp("uint16", 4095))
    without_pixels = dicom(np.zeros((2, 2), dtype="uint8"))
    assert code_of(b"") == "not_dicom"
    assert code_of(b"nothing of the kind" * 100) == "not_dicom"
    assert code_of(good[:-100]) == "pixels_undecodable"
    assert code_of(without_pixels[: without_pixels.index(b"\xe0\x7f\x10\x00")]) == "no_pixel_data"
    assert (
        code_of(dicom(np.zeros((2, 2), dtype="uint8"), PhotometricInterpretation="PALETTE COLOR"))
        == "unsupported_pixels"
    )
    broken = dicom(ramp("uint8", 255), JPEGBaseline8Bit)
    # pydicom drops an encapsulated element without an end.
    assert code_of(broken[: broken.index(b"\xff\xd8\xff") + 40]) == "no_pixel_data"
    assert (
        code_of(dicom(np.zeros((4, 4), dtype="uint8"), DeflatedExplicitVRLittleEndian)[:-20] + b"\xff" * 30)
        == "not_dicom"
    )


# --- frames and headers that lie about themselves -----------------------------------------------------------------

EIGHT = np.tile(np.linspace(0, 255, 64).astype("uint8"), (64, 1))


KNOWN_CODES = {
    "too_large",
    "not_dicom",
    "no_pixel_data",
    "incomplete_header",
    "unsupported_pixels",
    "too_many_pixels",
    "pixels_undecodable",
}


def refused_undecoded(monkeypatch: pytest.MonkeyPatch, data: bytes) -> bool:
    """Whether the pixels are refused before any decoder sees them."""
    with monkeypatch.context() as patch:
        patch.setattr("console.adapters.pixels.pixel_array", lambda *_, **__: pytest.fail("was decoded"))
        return code_of(data) == "pixels_undecodable"


def of_size(frame: bytes, rows: int, columns: int) -> bytes:
    """The JPEG frame, but its header says this size."""
    at = frame.index(b"\xff\xc0") + 5
    return frame[:at] + struct.pack(">HH", rows, columns) + frame[at + 4 :]


@pytest.mark.parametrize("junk", [b"\0", b"\x12\x34\x56", b"\xff\xff", b"\xff\x01", b"\xff\xd3", b"\xff\0"])
def test_what_decoders_pass_over_hides_no_size(monkeypatch: pytest.MonkeyPatch, junk: bytes) -> None:
    frame = encoded(EIGHT, "JPEG")
    at = frame.index(b"\xff\xc0")
    with_junk = frame[:at] + junk + frame[at:]
    picture = shown(dicom(EIGHT, JPEGBaseline8Bit, PixelData=encapsulate([with_junk])))
    assert np.abs(picture.astype(int) - EIGHT).max() < 8
    huge = encapsulate([of_size(with_junk, 9_000, 9_000)])
    assert refused_undecoded(monkeypatch, dicom(EIGHT, JPEGBaseline8Bit, PixelData=huge))


def test_two_frame_headers_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = encoded(EIGHT, "JPEG")
    at = frame.index(b"\xff\xc0")
    twice = frame[: at + 13] + of_size(frame, 9_000, 9_000)[at:]
    assert refused_undecoded(monkeypatch, dicom(EIGHT, JPEGBaseline8Bit, PixelData=encapsulate([twice])))


def test_a_decoy_before_the_codestream_of_a_jp2_file_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded(EIGHT, "JPEG2000")
    decoy = encoded(EIGHT, "JPEG2000", no_jp2=True)
    assert np.array_equal(shown(dicom(EIGHT, JPEG2000Lossless, PixelData=encapsulate([whole]))), EIGHT)
    at = whole.index(b"jp2c") - 4
    huge = bytearray(whole[at:])
    huge[16:24] = struct.pack(">II", 60_000, 60_000)
    lying = whole[:at] + struct.pack(">I4s", 8 + len(decoy), b"xml ") + decoy + huge
    assert refused_undecoded(monkeypatch, dicom(EIGHT, JPEG2000Lossless, PixelData=encapsulate([lying])))


def test_thousands_of_components_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = bytearray(encoded(EIGHT, "JPEG2000", no_jp2=True))
    frame[40:42] = struct.pack(">H", 16_384)
    assert refused_undecoded(monkeypatch, dicom(EIGHT, JPEG2000Lossless, PixelData=encapsulate([bytes(frame)])))


def test_an_extended_offset_table_shows_the_decoder_no_other_frame() -> None:
    frame = encoded(EIGHT, "JPEG")
    huge = of_size(frame, 3_000, 3_000)
    data = dicom(
        EIGHT,
        JPEGBaseline8Bit,
        NumberOfFrames=2,
        PixelData=encapsulate([frame, huge], has_bot=False),
        ExtendedOffsetTable=struct.pack("<QQ", len(frame) + len(frame) % 2 + 8, 0),
        ExtendedOffsetTableLengths=struct.pack("<QQ", len(huge), len(frame)),
    )
    assert np.abs(shown(data).astype(int) - EIGHT).max() < 8


def test_a_basic_offset_table_shows_the_decoder_no_other_frame() -> None:
    frame = encoded(EIGHT, "JPEG")
    data = dicom(
        EIGHT, JPEGBaseline8Bit, NumberOfFrames=2, PixelData=encapsulate([frame, of_size(frame, 3_000, 3_000)])
    )
    first, second = struct.pack("<I", 0), struct.pack("<I", len(frame) + len(frame) % 2 + 8)
    assert data.count(first + second) == 1
    assert code_of(data.replace(first + second, second + second)) == "pixels_undecodable"


@pytest.mark.parametrize("times", [1, 100])
def test_a_run_length_bomb_is_not_unfolded(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    segment = b"\x81\7" * (EIGHT.size // 128 * times)
    data = dicom(EIGHT, RLELossless, PixelData=encapsulate([struct.pack("<16I", 1, 64, *[0] * 14) + segment]))
    if times == 1:
        assert shown(data).shape == EIGHT.shape
    else:
        assert refused_undecoded(monkeypatch, data)


@pytest.mark.parametrize("compressed", [False, True], ids=["native", "RLE"])
def test_stored_values_in_the_high_bits(compressed: bool) -> None:
    overlay, twelve = np.arange(64, dtype="uint16") % 16, EIGHT.astype("uint16") << 4
    for high_bit, pixels in ((11, twelve), (15, twelve), (15, twelve << 4 | overlay)):
        ds = dcmread(io.BytesIO(dicom(pixels, BitsStored=12, HighBit=high_bit)))
        ds.WindowCenter, ds.WindowWidth = 2048, 4096
        if compressed:
            ds.compress(RLELossless, generate_instance_uid=False)
        out = io.BytesIO()
        ds.save_as(out)
        assert np.abs(shown(out.getvalue()).astype(int) - EIGHT).max() <= 1


@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_table_says_the_same_in_every_byte_order(syntax: Any, sequence: str) -> None:
    order = "<" if syntax.is_little_endian else ">"
    table = (np.linspace(0, 1, 256) ** 3 * 65535)[::-1].astype("uint16")
    item = Dataset()
    item.LUTDescriptor = [256, 0, 16]
    item.add_new("LUTData", "OW", table.astype(f"{order}u2").tobytes())
    picture = shown(dicom(EIGHT.astype(f"{order}u2"), syntax, **{sequence: [item]}))
    expected = table[EIGHT] / 257
    assert np.abs(picture - expected).max() <= 2


@pytest.mark.filterwarnings("ignore:::pydicom")
@pytest.mark.parametrize(("slope", "intercept"), [("nan", 0), ("1e308", "1e308")])
def test_values_that_are_no_numbers_make_no_picture(slope: str, intercept: object) -> None:
    data = dicom(ramp("uint16", 4095), RescaleSlope=slope, RescaleIntercept=intercept)
    assert code_of(data) == "pixels_undecodable"


@pytest.mark.filterwarnings("ignore:::pydicom")
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.9", "1.2.3", "1.2.840.10008.1.1", "1.2.840.10008.1.2.4"])
def test_a_transfer_syntax_that_is_none(syntax: str) -> None:
    good = dicom(EIGHT, JPEGBaseline8Bit)
    said = JPEGBaseline8Bit.encode()
    assert code_of(good.replace(said, syntax.encode().ljust(len(said), b"\0"))) in KNOWN_CODES


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGBaseline8Bit, DeflatedExplicitVRLittleEndian])
def test_a_damaged_file_is_shown_or_refused_with_a_code(syntax: Any) -> None:
    good = dicom(EIGHT, syntax, WindowCenter=100, WindowWidth=200, RescaleSlope=1, RescaleIntercept=0)
    dice = random.Random(1)
    refused = set()
    for _ in range(300):
        damaged = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(132, min(len(good), 700))] = dice.randrange(256)
        try:
            render_png(io.BytesIO(bytes(damaged)), LIMIT)
        except NotShown as error:
            refused.add(error.code)
    assert refused <= KNOWN_CODES


def test_a_store_that_fails_while_it_is_read_is_no_damaged_file() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError("connection reset")

    with pytest.raises(ObjectStoreUnavailable):
        render_png(Failing(dicom(EIGHT)), LIMIT)


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    running = Console(f"sqlite:///{tmp_path}/console.sqlite3", tmp_path, max_pixels=10_000)
    yield running
    running.close()


def stored(console: Console, data: bytes) -> str:
    """The address of the image of a study that was made of these bytes."""
    study = StudyEvents()
    digest = hashlib.sha256(data).hexdigest()
    key = f"objects/{digest}.dcm"
    console.store.put_bytes(data, key)
    instance = {"sop_instance_uid": study.sop_instance_uid, "object_ref": key, "sha256": digest}
    console.feed([study.completed(instances=[instance])])
    return f"/api/studies/{study.uid}/images/{study.sop_instance_uid}.png"


def test_the_image_comes_once_and_then_from_the_browser_s_cache(console: Console) -> None:
    url = stored(console, dicom(ramp("uint8", 255)))
    first = console.http.get(url)
    assert first.status_code == 200
    assert first.headers["content-type"] == "image/png"
    assert first.headers["cache-control"].startswith("private")
    assert Image.open(io.BytesIO(first.content)).size == (64, 64)
    again = console.http.get(url, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_an_image_that_many_ask_for_at_once_is_rendered_once(console: Console, tmp_path: Path) -> None:
    url = stored(console, dicom(ramp("uint8", 255)))
    (_, images) = console.queries.study(url.split("/")[3])
    opened, let_go = threading.Semaphore(0), threading.Event()

    class Slow(LocalObjectStore):
        def open(self, key: str) -> IO[bytes]:
            opened.release()
            assert let_go.wait(120)
            return super().open(key)

    service = ImageService(lambda: Slow(tmp_path / "objects"), max_pixels=LIMIT)
    with ThreadPoolExecutor(4) as people:
        pictures = [people.submit(service.png, images[0]) for _ in range(4)]
        assert opened.acquire(timeout=120)
        let_go.set()
        assert len({picture.result() for picture in pictures}) == 1
    assert not opened.acquire(blocking=False)


def test_an_image_that_cannot_be_shown_says_why(console: Console) -> None:
    answer = console.http.get(stored(console, dicom(np.zeros((200, 200), dtype="uint8"))))
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert answer.json()["code"] == "too_many_pixels"


def test_an_object_that_is_gone(console: Console) -> None:
    study = StudyEvents()
    console.feed([study.completed()])
    answer = console.http.get(f"/api/studies/{study.uid}/images/{study.sop_instance_uid}.png")
    assert (answer.status_code, answer.json()["code"]) == (404, "object_not_found")
