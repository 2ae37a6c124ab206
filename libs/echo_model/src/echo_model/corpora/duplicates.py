"""Near-duplicates: the same picture with the same report, stored twice, cropped or saved again.

Two entries are near-duplicates when the difference hashes of their images differ in at most `IMAGE_BITS` of 256 bits
and their reports share most of their runs of three words. Both must hold: normal reports are alike, and so are chests.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from echo_model.images import Picture, read_image

IMAGE_BITS: Final = 12
TEXT_SHARE: Final = 0.8
"""Least share of common word triples (Jaccard)."""

_EDGE: Final = 16
_BANDS: Final = 16  # 16 bits each: hashes that differ in at most 15 bits agree in one band at least
_WORD = re.compile(r"[^\W_]+")


def image_hash(picture: Picture) -> int:
    """Difference hash of 256 bits: is a pixel of the 17 x 16 grey thumbnail brighter than the one to its left?"""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(_grey8(np.asarray(picture)))
    small = np.asarray(image.convert("L").resize((_EDGE + 1, _EDGE), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes())


def _grey8(pixels: np.ndarray) -> np.ndarray:
    """Any array as uint8, stretched to its own range."""
    if pixels.dtype == np.uint8:
        return pixels
    values = pixels.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    return ((values - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)


def hash_file(path: Path) -> int:
    """`image_hash` of a file. Raises ImageError."""
    return image_hash(read_image(path))


def near_duplicates(hashes: Sequence[int], texts: Sequence[str]) -> dict[int, int]:
    """For every near-duplicate the place of the earlier entry it repeats."""
    bands: dict[tuple[int, int], list[int]] = defaultdict(list)
    triples = [_triples(text) for text in texts]
    found: dict[int, int] = {}
    for place, number in enumerate(hashes):
        keys = [(band, number >> (16 * band) & 0xFFFF) for band in range(_BANDS)]
        for other in sorted({other for key in keys for other in bands[key]}):
            if (number ^ hashes[other]).bit_count() <= IMAGE_BITS and _alike(triples[place], triples[other]):
                found[place] = other
                break
        else:
            for key in keys:
                bands[key].append(place)
    return found


def _triples(text: str) -> frozenset[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return frozenset(zip(words, words[1:], words[2:], strict=False)) or frozenset({tuple(words)})


def _alike(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> bool:
    return len(one & other) >= TEXT_SHARE * len(one | other)
