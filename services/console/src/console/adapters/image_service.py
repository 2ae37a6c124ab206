"""From a study's object to the PNG a browser gets: looked up, rendered one at a time, kept for a while."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from console.adapters.pixels import render_png
from console.domain.facts import Image
from pipeline.errors import ObjectStoreUnavailable
from pipeline.store import ObjectStore

_KEPT = 64
_RENDERING = "2"
"""Part of the ETag: raise it when the same bytes would give another picture."""


class ImageService:
    """PNGs of stored objects. The store is opened at first use: pages work while it is away."""

    def __init__(self, open_store: Callable[[], ObjectStore], max_pixels: int) -> None:
        self._open_store = open_store
        self._max_pixels = max_pixels
        self._store: ObjectStore | None = None
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._rendering = threading.Lock()  # decoded pixels are large: one image at a time

    def etag(self, image: Image) -> str:
        """Changes exactly when the picture does."""
        return f'"{image.sha256[:32]}-{_RENDERING}"'

    def png(self, image: Image) -> bytes:
        """The picture. Raises `NotShown`, `ObjectNotFound`, `ObjectStoreUnavailable`."""
        if (known := self._known(image)) is not None:
            return known
        with self._rendering:
            if (known := self._known(image)) is not None:  # whoever had the turn before may have rendered it
                return known
            with self._opened().open(image.object_ref) as file:
                picture = render_png(file, self._max_pixels)
            with self._lock:
                self._kept[image.sha256] = picture
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
        return picture

    def _known(self, image: Image) -> bytes | None:
        with self._lock:
            if image.sha256 in self._kept:
                self._kept.move_to_end(image.sha256)
            return self._kept.get(image.sha256)

    def _opened(self) -> ObjectStore:
        if self._store is None:
            try:
                self._store = self._open_store()
            except OSError as error:
                raise ObjectStoreUnavailable("the object store cannot be opened") from error
        return self._store
