"""From stored values to the picture a reader sees: modality LUT, VOI LUT or window, inversion, eight bits.

PS3.3 C.11.1 (Modality LUT), C.11.2 (VOI LUT), C.7.6.3.1.2 (Photometric Interpretation). Real headers are poor: a
window that leaves nothing of the picture is not believed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from inference_worker.ports import GreyImage

Floats = npt.NDArray[np.float32]
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114  # ITU-R BT.601
_DARKEST, _BRIGHTEST = 0.1, 99.9  # percent
_FLAT = 2.0  # grey levels of 255: what a window leaves must vary more than this
_WORK_PIXELS = 12_000_000


def to_grey(stored: npt.NDArray[Any], ds: Dataset) -> GreyImage:
    """One decoded frame, rows x columns or rows x columns x 3 (RGB), as 8-bit grey.

    Raises `ValueError` for values that are no numbers.
    """
    photometric = str(ds.get("PhotometricInterpretation", "MONOCHROME2")).strip().upper()
    if photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, ds)
    if stored.ndim == 3:
        return _stretched(_shrunk(_luminance(stored)), None)
    values = _shrunk(stored)
    padding = _padding(values, ds)
    modality = _table(ds, "ModalityLUTSequence")
    if modality is not None:
        first, entries, _ = modality
        values = entries[_places(values, first, entries)]
    else:
        slope, intercept = _number(ds.get("RescaleSlope"), 1.0), _number(ds.get("RescaleIntercept"), 0.0)
        if slope not in (0.0, 1.0) or intercept != 0.0:
            values = values * np.float32(slope or 1.0) + np.float32(intercept)
    if not np.isfinite(values).all():  # one of them would make the whole picture black
        raise ValueError("values that are no numbers")
    picture = _voi(values, ds)
    if picture is None or float(np.ptp(picture if padding is None else picture[~padding])) < _FLAT:
        eight_bits = int(ds.get("BitsStored") or 16) == 8 and values.min() >= 0 and 1 < values.max() <= 255
        picture = values if eight_bits and padding is None else None
    grey = np.rint(picture).astype(np.uint8) if picture is not None else _stretched(values, padding)
    if photometric == "MONOCHROME1":
        grey = np.uint8(255) - grey
    if padding is not None:
        grey[padding] = 0  # what the detector did not see is black, whichever way the values run
    return grey


def _shrunk(values: npt.NDArray[Any]) -> Floats:
    """Means over small squares where there are more pixels than any model looks at: bounds memory and time."""
    factor = int(np.ceil(np.sqrt(values.size / _WORK_PIXELS)))
    if factor <= 1:
        return values.astype(np.float32)
    rows, columns = values.shape[0] // factor, values.shape[1] // factor
    cut = values[: rows * factor, : columns * factor]
    small: Floats = cut.reshape(rows, factor, columns, factor).mean(axis=(1, 3), dtype=np.float32)
    return small


def _luminance(rgb: npt.NDArray[Any]) -> Floats:
    grey = rgb[..., 0].astype(np.float32) * np.float32(_RED)
    grey += rgb[..., 1] * np.float32(_GREEN)
    grey += rgb[..., 2] * np.float32(_BLUE)
    if rgb.dtype.itemsize > 1:
        grey /= np.float32(257.0)
    return grey


def _padding(values: Floats, ds: Dataset) -> npt.NDArray[np.bool_] | None:
    """Where PixelPaddingValue stands (PS3.3 C.7.5.1.1.2); None where it does not, or would be the whole picture."""
    value = ds.get("PixelPaddingValue")
    if not isinstance(value, int | float):
        return None
    limit = ds.get("PixelPaddingRangeLimit", value)
    low, high = sorted((float(value), float(limit) if isinstance(limit, int | float) else float(value)))
    mask: npt.NDArray[np.bool_] = (values >= low) & (values <= high)
    return mask if mask.any() and not mask.all() else None


def _voi(values: Floats, ds: Dataset) -> Floats | None:
    """Values in 0..255 by the first VOI LUT, else the first window; None without one that can be applied."""
    table = _table(ds, "VOILUTSequence")
    if table is None:
        return _window(values, ds)
    first, entries, bits = table
    mapped: Floats = entries[_places(values, first, entries)] * np.float32(255.0 / (2**bits - 1))
    return mapped.clip(0.0, 255.0)


def _table(ds: Dataset, sequence: str) -> tuple[int, Floats, int] | None:
    """First input value, entries and bits of a lookup table (C.11.1.1.1); None for one that is malformed."""
    try:
        item = ds[sequence].value[0]
        count, first, bits = (int(value) for value in item.LUTDescriptor)
        data, order = item.LUTData, "<" if ds.file_meta.TransferSyntaxUID.is_little_endian else ">"
        words = np.frombuffer(data, f"{order}u2") if isinstance(data, bytes) else np.asarray(data)
        count = count % 65536 or 65536
        if bits == 8 and words.size == (count + 1) // 2:  # two to a word, the first in the low byte
            words = words.astype("<u2").view(np.uint8)
        entries: Floats = words[:count].astype(np.float32)
    except (TypeError, ValueError, IndexError, AttributeError, KeyError):
        return None
    return (first, entries, bits) if entries.size and 1 <= bits <= 16 else None


def _places(values: Floats, first: int, entries: Floats) -> npt.NDArray[np.int64]:
    """Indices into the table: what lies before it takes its first entry, what lies behind it the last."""
    if first >= 2**15 and values.max() < first:  # meant signed: implicit VR tells by the sign of the stored values
        first -= 2**16
    places: npt.NDArray[np.int64] = np.rint(values - np.float32(first)).clip(0, entries.size - 1).astype(np.int64)
    return places


def _window(values: Floats, ds: Dataset) -> Floats | None:
    center, width = _number(ds.get("WindowCenter"), None), _number(ds.get("WindowWidth"), None)
    if center is None or width is None or width <= 0:
        return None
    function = str(ds.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function == "SIGMOID":
        steps: Floats = (-4.0 * (values - np.float32(center)) / np.float32(width)).clip(-60.0, 60.0)
        curve: Floats = np.float32(255.0) / (np.float32(1.0) + np.exp(steps))
        return curve
    if function == "LINEAR" and width > 1:  # C.11.2.1.2.1; LINEAR_EXACT is C.11.2.1.3.2
        center, width = center - 0.5, width - 1.0
    scaled: Floats = (values - np.float32(center - width / 2)) * np.float32(255.0 / width)
    clipped: Floats = scaled.clip(0.0, 255.0)
    return clipped


def _stretched(values: Floats, padding: npt.NDArray[np.bool_] | None) -> GreyImage:
    """Full grey scale between two percentiles, so that a few hot pixels or a marker do not decide."""
    counted = values if padding is None else values[~padding]
    low, high = (float(edge) for edge in np.percentile(counted, [_DARKEST, _BRIGHTEST]))
    if high <= low:
        low, high = float(counted.min()), float(counted.max())
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    scaled: Floats = (values - np.float32(low)) * np.float32(255.0 / (high - low))
    grey: GreyImage = np.rint(scaled.clip(0.0, 255.0)).astype(np.uint8)
    return grey


def _number(value: Any, default: float | None) -> Any:
    """The first number of an element that may be empty, multiple or unreadable."""
    if value is not None and not isinstance(value, str | bytes | int | float) and hasattr(value, "__iter__"):
        value = next(iter(value), None)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return default
    return number if np.isfinite(number) else default
