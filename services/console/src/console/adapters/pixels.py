"""A DICOM object as a PNG for people: first frame, upright, its own window, at most `MAX_SIDE` pixels a side.

Every size is checked against the header, and against the size inside a compressed frame, before anything is allocated
for it: whoever can send to the listener can send a file that claims to be huge.
"""

from __future__ import annotations

import functools
import io
import logging
import struct
import warnings
import zlib
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import get_frame
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, RLELossless

from pipeline.errors import ObjectStoreUnavailable
from pipeline.pixel_data import OFFSET_TABLES, frame_size, in_lowest_bits, rle_fits, upright

logging.getLogger("pydicom").setLevel(logging.ERROR)  # its warnings quote values of the data set

MAX_SIDE = 1024
MAX_FILE_BYTES = 512 * 1024 * 1024
_META_LIMIT = 64 * 1024  # file meta information is far smaller
_PIECE = 1 << 20
_KNOWN_PHOTOMETRIC = (
    "MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"
)  # fmt: skip


class NotShown(Exception):
    """The object cannot be shown; `code` for programs, the text for people. Carries no content of the object."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def render_png(file: IO[bytes], max_pixels: int) -> bytes:
    """The PNG of a DICOM file (seekable).

    Raises `NotShown` for everything that is no image we can decode in bounds, `ObjectStoreUnavailable` where the file
    itself cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values of the data set
        try:
            _check_file(file)
            ds = dcmread(file)
        except NotShown:
            raise
        except OSError as error:
            raise ObjectStoreUnavailable("the object cannot be read") from error
        except Exception as error:  # damaged files raise from every depth of the parser
            raise NotShown("not_dicom", "The object is not a readable DICOM file.") from error
        _check_header(ds, max_pixels)
        try:
            pixels = _stored(ds)
        except Exception as error:
            # The decoders raise whatever they like (ValueError, RuntimeError, their own): all mean the same.
            raise NotShown("pixels_undecodable", "The pixel data cannot be decoded.") from error
        reduced = _shrunk(pixels)
        picture = _colour(reduced) if reduced.ndim == 3 else _windowed(reduced, ds)
    out = io.BytesIO()
    Image.fromarray(upright(picture, ds.get("PatientOrientation"))).save(out, format="PNG")
    return out.getvalue()


def _check_file(file: IO[bytes]) -> None:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size > MAX_FILE_BYTES:
        raise NotShown("too_large", "The file is too large to be shown.")
    head = file.read(_META_LIMIT)
    if DeflatedExplicitVRLittleEndian.encode() in head:
        _check_deflated(head, file)
    file.seek(0)


def _check_deflated(head: bytes, file: IO[bytes]) -> None:
    """Inflate piece by piece without keeping anything, before pydicom inflates the data set whole."""
    if head[128:140] != b"DICM\x02\x00\x00\x00UL\x04\x00":
        raise NotShown("not_dicom", "The object is not a readable DICOM file.")
    file.seek(144 + struct.unpack_from("<I", head, 140)[0])
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total = 0
    try:
        while piece := inflater.unconsumed_tail or file.read(_PIECE):
            total += len(inflater.decompress(piece, _PIECE))
            if total > MAX_FILE_BYTES:
                raise NotShown("too_large", "The file is too large to be shown.")
            if inflater.eof:
                return
    except zlib.error as error:
        raise NotShown("not_dicom", "The object is not a readable DICOM file.") from error


def _check_header(ds: Dataset, max_pixels: int) -> None:
    if "PixelData" not in ds:
        raise NotShown("no_pixel_data", "The object has no pixel data.")
    try:
        rows, columns, samples = int(ds.Rows), int(ds.Columns), int(ds.SamplesPerPixel)
        bits, photometric = int(ds.BitsAllocated), str(ds.PhotometricInterpretation)
        syntax = ds.file_meta.TransferSyntaxUID
        encapsulated = syntax.is_encapsulated
    except Exception as error:  # values of another kind than their keyword's raise whatever the parser likes
        raise NotShown("incomplete_header", "The object does not say how its pixels are stored.") from error
    if (
        rows < 1
        or columns < 1
        or photometric not in _KNOWN_PHOTOMETRIC
        or samples not in (1, 3)
        or bits not in (8, 16, 32)
    ):
        raise NotShown("unsupported_pixels", "Pixels of this kind are not shown.")
    if rows * columns * samples > max_pixels:
        raise NotShown("too_many_pixels", f"The image has {rows} x {columns} pixels, more than are shown.")
    if encapsulated:
        _check_frame(ds, syntax, (rows, columns, samples), bits)


def _check_frame(ds: Dataset, syntax: UID, size: tuple[int, int, int], bits: int) -> None:
    """Look at the compressed frame that the decoder will be given. `size`: rows, columns, samples of the header."""
    for name in OFFSET_TABLES:
        ds.pop(name, None)
    try:
        frame = get_frame(ds.PixelData, 0, number_of_frames=int(ds.get("NumberOfFrames") or 1))
    except Exception as error:
        raise NotShown("pixels_undecodable", "The pixel data cannot be decoded.") from error
    rows, columns, samples = size
    if syntax == RLELossless:
        if not rle_fits(frame, rows * columns, samples * (bits // 8)):
            raise NotShown("pixels_undecodable", "The pixel data cannot be decoded.")
        return
    inner = frame_size(frame)
    if inner is None:
        raise NotShown("pixels_undecodable", "The pixel data cannot be decoded.")
    if inner != size:
        raise NotShown("pixels_undecodable", "The compressed image is of another size than its header says.")


def _stored(ds: Dataset) -> npt.NDArray[Any]:
    """The stored values of the first frame, rows x columns or rows x columns x 3."""
    decode, syntax = functools.partial(pixel_array, ds, index=0), ds.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax != RLELossless:
        return decode()
    values: npt.NDArray[Any] = in_lowest_bits(
        decode,
        bits_allocated=int(ds.BitsAllocated),
        bits_stored=int(ds.BitsStored),
        high_bit=int(ds.HighBit),
        signed=ds.PixelRepresentation == 1,
    )
    return values


def _shrunk(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """At most `MAX_SIDE` pixels a side, by the mean over whole blocks and then a resize; same kind of number."""
    rows, columns = pixels.shape[:2]
    block = max(1, max(rows, columns) // (2 * MAX_SIDE))
    if block > 1:
        kept = pixels[: rows // block * block, : columns // block * block]
        shape = (rows // block, block, columns // block, block, *pixels.shape[2:])
        pixels = kept.reshape(shape).mean(axis=(1, 3), dtype=np.float32).astype(pixels.dtype)
        rows, columns = pixels.shape[:2]
    scale = MAX_SIDE / max(rows, columns)
    if scale >= 1:
        return pixels
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    if pixels.ndim == 3:
        return np.asarray(Image.fromarray(pixels.astype(np.uint8)).resize(size, Image.Resampling.BOX))
    shrunk = Image.fromarray(pixels.astype(np.float32)).resize(size, Image.Resampling.BOX)
    rounded: npt.NDArray[Any] = np.rint(np.asarray(shrunk)).astype(pixels.dtype)
    return rounded


def _colour(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return pixels.astype(np.uint8) if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)


def _windowed(pixels: npt.NDArray[Any], ds: Dataset) -> npt.NDArray[np.uint8]:
    """Modality LUT, then VOI LUT or window, then 0..255, white for high values (PS3.3 C.11.1, C.11.2, C.7.6.3.1.2)."""
    try:
        values = np.asarray(apply_modality_lut(pixels, ds), dtype=np.float64)
        window = _window(ds)
        if "VOILUTSequence" in ds and window is None:
            values = np.asarray(apply_voi_lut(np.rint(values).astype(np.int64), ds), dtype=np.float64)
    except Exception as error:
        # A wrong LUT or window makes pydicom raise errors of many kinds.
        raise NotShown("pixels_undecodable", "The grey scale of the image is not usable.") from error
    if not np.isfinite(values).all():
        raise NotShown("pixels_undecodable", "The grey scale of the image is not usable.")
    low, high = window or (float(np.percentile(values, 0.5)), float(np.percentile(values, 99.5)))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    grey = np.clip((values - low) / (high - low if high > low else 1.0), 0.0, 1.0)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        grey = 1.0 - grey
    return np.rint(grey * 255).astype(np.uint8)


def _window(ds: Dataset) -> tuple[float, float] | None:
    """The values shown as black and as white by the first window, in modality units; None without a usable one."""
    centre, width = (_first(ds.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or width < 1:
        return None
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value if isinstance(value, int | float | str) else next(iter(value)))
    except (TypeError, ValueError, StopIteration):
        return None
    return number if np.isfinite(number) else None
