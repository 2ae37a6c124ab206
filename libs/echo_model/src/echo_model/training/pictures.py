"""The pictures of studies: read ahead by threads, or as the frozen tower sees them, kept on disk."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from echo_model.errors import ImageError
from echo_model.images import ImageConfig, preprocess, read_image
from echo_model.training.config import TrainConfigError
from echo_model.training.parallel import Share
from echo_model.training.row_model import Pictures, RowModel
from echo_model.training.studies import Study

Say = Callable[[str], None]


class ReadPictures:
    """Patches of the studies' pictures, read when they are wanted or a little before.

    Reading and scaling release the interpreter's lock, so threads are enough. What is read does not depend on them.
    """

    def __init__(self, studies: Sequence[Study], settings: ImageConfig, loaders: int) -> None:
        """`loaders`: threads; 0 reads in the caller's."""
        self._studies, self._settings = studies, settings
        self._threads = ThreadPoolExecutor(loaders, "pictures") if loaders else None
        self._coming: dict[int, Future[Pictures]] = {}

    def ahead(self, numbers: Iterable[int]) -> None:
        """Begin to read studies that will be asked for next."""
        if self._threads is not None:
            for number in numbers:
                if number not in self._coming:
                    self._coming[number] = self._threads.submit(self._read, number)

    def of(self, number: int) -> Pictures:
        """The pictures of a study. Raises ImageError for one that is damaged or gone."""
        coming = self._coming.pop(number, None)
        return self._read(number) if coming is None else coming.result()

    def close(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def _read(self, number: int) -> Pictures:
        study = self._studies[number]
        patches, grids = [], []
        for path, expected in zip(study.pictures, study.grids, strict=True):
            try:
                values, grid = preprocess(read_image(path, self._settings.max_image_pixels), self._settings)
            except ImageError as error:
                raise ImageError(error.code, f"{path}: {error}") from None
            if tuple(grid.tolist()) != expected:
                raise ImageError("not_an_image", f"{path}: the picture has changed since this run began")
            patches.append(torch.from_numpy(values))
            grids.append(torch.from_numpy(grid))
        return Pictures(torch.cat(patches), torch.stack(grids))


class StoredPictures:
    """The frozen tower's output for every study of a list, in one file that is mapped, not read.

    The folder is named after tower and pictures, so that stages with the same tower share it.
    """

    def __init__(
        self, work: Path, studies: Sequence[Study], settings: ImageConfig, model: RowModel, kind: torch.dtype
    ) -> None:
        """Raises TrainConfigError when the disk has no room for it."""
        cell = settings.merge_size**2
        sizes = [sum(int(np.prod(grid)) // cell for grid in study.grids) for study in studies]
        self._ends = np.cumsum(sizes)
        self._starts = self._ends - sizes
        self._kind, self._width = kind, int(model.model.config.text_config.hidden_size)
        told = f"{_digest(model.model.model.visual)} {settings} {kind} {[(s.pictures, s.grids) for s in studies]}"
        self.folder = work / f"features-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
        self._values = self.folder / "values.bin"
        wanted = int(self._ends[-1]) * self._width * kind.itemsize
        free = shutil.disk_usage(work).free
        if not self._values.exists() and wanted > free:
            raise TrainConfigError(
                f"key 'cache_features': {wanted / 1e9:.0f} GB would be stored in {work}, {free / 1e9:.0f} GB are free; "
                "say false to compute them when they are wanted"
            )
        self._map: Any = None

    def fill(self, pictures: ReadPictures, model: RowModel, share: Share, say: Say) -> None:
        """Compute what is missing; each process its part."""
        with share.first_alone():
            self.folder.mkdir(exist_ok=True)
            if not self._values.exists():
                part = self._values.with_suffix(".part")
                with part.open("wb") as file:
                    file.truncate(max(1, int(self._ends[-1]) * self._width * self._kind.itemsize))
                np.save(self.folder / "done.npy", np.zeros(len(self._ends), np.uint8))
                part.replace(self._values)
        count = int(self._ends[-1]) * self._width
        self._map = torch.from_file(str(self._values), shared=True, size=count, dtype=self._kind).view(-1, self._width)
        done: Any = np.lib.format.open_memmap(self.folder / "done.npy", mode="r+")
        missing = share.own(np.flatnonzero(np.asarray(done) == 0)).tolist()
        for place, number in enumerate(missing):
            pictures.ahead(missing[place : place + 8])
            with torch.no_grad():
                seen = model.see(pictures.of(number))
            self._map[self._starts[number] : self._ends[number]] = seen.to("cpu", self._kind)
            done[number] = 1
            if (place + 1) % 1000 == 0:
                say(f"features  {place + 1}/{len(missing)} studies")
        share.wait()

    def ahead(self, numbers: Iterable[int]) -> None:
        """Nothing has to be read ahead."""

    def of(self, number: int) -> Pictures:
        """What the tower made of a study's pictures."""
        return Pictures(features=self._map[self._starts[number] : self._ends[number]])


def _digest(tower: torch.nn.Module) -> str:
    """Of all weights of the tower."""
    digest = hashlib.sha256()
    for name, value in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
