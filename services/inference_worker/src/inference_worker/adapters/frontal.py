"""The last word where the headers say nothing: does the picture look like a frontal chest radiograph?

A plain look at the shape, not a classifier: across the middle of the chest the brightness falls from the chest wall
into each lung and rises to the mediastinum between them, much the same on both sides. It is meant to turn away what is
clearly something else (hands, knees, skulls, lateral views, blank exposures), and lets pass what it is not sure of.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from inference_worker.ports import GreyImage

Profile = npt.NDArray[np.float64]

_SIDE = 64  # both sides of the picture that is looked at
_BORDER = 0.02  # of the range: rows and columns as dark as this are collimation
_DEPTH = 0.12  # of the range: how much darker than mediastinum and chest wall a lung is at least
_BANDS = ((0.20, 0.40), (0.30, 0.50), (0.40, 0.60))  # heights at which the lungs are looked for
_RIDGE = 0.2  # of the range: what a valley may rise in between; the gaps between fingers rise more
_LIKENESS = 0.2  # correlation of one half with the other, mirrored


def looks_frontal(grey: GreyImage) -> bool:
    """Whether the lungs are seen side by side at one height at least. `grey`: rows x columns, air dark."""
    small = _small(_uncollimated(grey.astype(np.float64)))
    low, high = np.percentile(small, [2, 98])
    if high - low < 16:  # of 255: a blank exposure
        return False
    picture = ((small - low) / (high - low)).clip(0.0, 1.0)
    return any(_two_lungs(picture[int(top * _SIDE) : int(bottom * _SIDE)].mean(axis=0)) for top, bottom in _BANDS)


def _two_lungs(profile: Profile) -> bool:
    """Wall, lung, mediastinum, lung, wall; each lung one valley, and one half much like the other."""
    smooth = np.convolve(np.pad(profile, 2, mode="edge"), np.ones(5) / 5, mode="valid")
    third, half = _SIDE // 3, _SIDE // 2
    spine = third + int(smooth[third:-third].argmax())
    if abs(spine - half) > _SIDE // 6:
        return False
    left, right = smooth[: spine + 1][::-1], smooth[spine:]  # from the middle outwards
    if not (_is_lung(left) and _is_lung(right)):
        return False
    reach = min(left.size, right.size)
    return bool(np.corrcoef(left[:reach], right[:reach])[0, 1] > _LIKENESS)


def _is_lung(side: Profile) -> bool:
    """Whether there is a chest wall, bright again behind a wide valley without ridges; what lies outside is air."""
    for wall in range(_SIDE // 5, side.size):
        lung = int(side[:wall].argmin())
        if min(side[0], side[wall]) - side[lung] < _DEPTH or lung < 2:
            continue
        ridge = max(_rise(side[: lung + 1]), _rise(side[lung : wall + 1][::-1]))
        if ridge < _RIDGE:
            return True
    return False


def _rise(falling: Profile) -> float:
    """The highest climb of a stretch that should only fall."""
    return float((falling - np.minimum.accumulate(falling)).max())


def _uncollimated(picture: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Without the black (or white) frame that the collimator leaves."""
    spread = float(picture.max() - picture.min()) or 1.0
    inside = [np.flatnonzero((picture.max(axis=axis) - picture.min(axis=axis)) > _BORDER * spread) for axis in (1, 0)]
    if any(found.size < 16 for found in inside):
        return picture
    rows, columns = inside
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _small(picture: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Means over a grid of equal cells."""
    rows, columns = (np.linspace(0, length, _SIDE + 1).astype(int) for length in picture.shape)
    rows[1:], columns[1:] = np.maximum(rows[1:], rows[:-1] + 1), np.maximum(columns[1:], columns[:-1] + 1)
    rows, columns = rows.clip(0, picture.shape[0]), columns.clip(0, picture.shape[1])
    sums = np.zeros((picture.shape[0] + 1, picture.shape[1] + 1))
    sums[1:, 1:] = picture.cumsum(axis=0).cumsum(axis=1)
    cells = np.diff(np.diff(sums[np.ix_(rows, columns)], axis=0), axis=1)
    return np.asarray(cells / np.maximum(np.outer(np.diff(rows), np.diff(columns)), 1))
