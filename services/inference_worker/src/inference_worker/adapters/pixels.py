"""A DICOM file in, the picture a reader would see out; nothing large is allocated before it is known to be allowed."""

from __future__ import annotations

import functools
import logging
import struct
import threading
import zlib
from typing import IO, Any

import numpy.typing as npt
from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.utils import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from inference_worker.adapters.grey import to_grey
from inference_worker.domain import Fault
from inference_worker.ports import GreyImage
from pipeline.pixel_data import OFFSET_TABLES, frame_size, in_lowest_bits, rle_fits, upright

log = logging.getLogger(__name__)

# Real objects break value rules by the thousand; what matters is checked below.
config.settings.reading_validation_mode = config.IGNORE

_META_START, _META_LENGTH_ELEMENT = 132, 12
_CHUNK = 2**20
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


class PydicomDecoder:
    """`ports.PixelDecoder` on pydicom and its plugins.

    `max_pixels` bounds rows x columns, `max_bytes` an inflated data set; at most `parallel` frames are decoded at once.
    """

    def __init__(self, max_pixels: int, max_bytes: int, parallel: int) -> None:
        self._max_pixels = max_pixels
        self._max_bytes = max_bytes
        self._turn = threading.BoundedSemaphore(parallel)

    def decode(self, file: IO[bytes], timeout_s: float | None = None) -> GreyImage:
        """Rows x columns, 8 bits. Raises `Fault`: `deadline_exceeded` when the others took longer than `timeout_s`."""
        if not self._turn.acquire(timeout=None if timeout_s is None else max(0.0, timeout_s)):
            raise Fault("deadline_exceeded")
        try:
            ds = self._read(file)
            self._check(ds)
            try:
                picture: GreyImage = upright(to_grey(_stored(ds), ds), ds.get("PatientOrientation"))
            except Exception as error:
                # Decoders raise whatever they like; the place is logged, the text might quote the data.
                log.warning("pixels undecodable", exc_info=True)
                raise Fault("pixels_undecodable") from error
            return picture
        finally:
            self._turn.release()

    def _read(self, file: IO[bytes]) -> Dataset:
        try:
            self._check_deflated(file)
            return dcmread(file)
        except Fault:
            raise
        except Exception as error:  # damaged files raise from every depth of the parser
            log.warning("file unreadable", exc_info=True)
            raise Fault("not_dicom") from error

    def _check_deflated(self, file: IO[bytes]) -> None:
        """Inflate a deflated data set (PS3.5 A.5) once without keeping it: the parser would inflate a bomb whole."""
        head = file.read(_META_START + _META_LENGTH_ELEMENT)
        body_start = len(head)
        if head[_META_START : _META_START + 6] == b"\x02\x00\x00\x00UL":
            body_start += struct.unpack_from("<I", head, _META_START + 8)[0]
        meta = file.read(max(0, min(body_start - len(head), _CHUNK)))
        deflated = DeflatedExplicitVRLittleEndian.encode() in meta
        total, inflater = 0, zlib.decompressobj(-zlib.MAX_WBITS)
        while deflated and not inflater.eof and (chunk := inflater.unconsumed_tail or file.read(_CHUNK)):
            total += len(inflater.decompress(chunk, _CHUNK))
            if total > self._max_bytes:
                raise Fault("image_too_large")
        file.seek(0)

    def _check(self, ds: Dataset) -> None:
        """Everything that a decoder would believe and allocate by."""
        pixels = next((ds.get_item(name) for name in _PIXELS if name in ds), None)
        if pixels is None or not pixels.value:
            raise Fault("no_pixel_data")
        rows, columns = _count(ds, "Rows"), _count(ds, "Columns")
        samples, frames = _count(ds, "SamplesPerPixel", 1), _count(ds, "NumberOfFrames", 1)
        if rows * columns > self._max_pixels:
            raise Fault("image_too_large")
        if frames > 1:
            raise Fault("multi_frame")
        if not rows or not columns or samples not in (1, 3):
            raise Fault("pixels_undecodable")
        syntax = ds.file_meta.get("TransferSyntaxUID")
        if syntax is None or not syntax.is_encapsulated:
            return
        for name in OFFSET_TABLES:
            ds.pop(name, None)
        try:
            frame = get_frame(ds.PixelData, 0, number_of_frames=1)
        except Exception as error:
            log.warning("no frame in the encapsulated pixel data", exc_info=True)
            raise Fault("pixels_undecodable") from error
        if syntax == RLELossless:
            if not rle_fits(frame, rows * columns, samples * (_count(ds, "BitsAllocated") // 8)):
                raise Fault("pixels_undecodable")
            return
        stated = frame_size(frame)
        if stated is not None and stated[0] * stated[1] > self._max_pixels:
            raise Fault("image_too_large")
        if stated != (rows, columns, samples):
            raise Fault("pixels_undecodable")


def _stored(ds: Dataset) -> npt.NDArray[Any]:
    """The stored values of the one frame, rows x columns or rows x columns x 3."""
    decode, syntax = functools.partial(pixel_array, ds, index=0), ds.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax != RLELossless:
        return decode()
    values: npt.NDArray[Any] = in_lowest_bits(
        decode,
        bits_allocated=_count(ds, "BitsAllocated"),
        bits_stored=_count(ds, "BitsStored"),
        high_bit=_count(ds, "HighBit"),
        signed=_count(ds, "PixelRepresentation") == 1,
    )
    return values


def _count(ds: Dataset, keyword: str, default: int = 0) -> int:
    """A non-negative count from a header that may hold anything."""
    try:
        return max(0, int(ds.get(keyword) or default))
    except (TypeError, ValueError):
        return default
