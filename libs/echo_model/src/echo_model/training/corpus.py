"""The training corpus on disk: phantom pixels and region labels, generated once, in the background of the training."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from echo_model.data.labels import DENSE_LABELS
from echo_model.data.phantoms import Phantom, draw_findings, generate_phantom, stream
from echo_model.data.wording import Report, write_report
from echo_model.training.shape import IMAGE_SIZE, VISUAL_TOKENS

_CELLS = int(VISUAL_TOKENS**0.5)


def training_report(seed: int, index: int) -> Report:
    """The report of a phantom without drawing its pixels."""
    return write_report(stream(seed, index, 2), draw_findings(stream(seed, index, 0)))


def model_pixels(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A square phantom at the model's size, uint8 (IMAGE_SIZE, IMAGE_SIZE), as preprocessing would scale it."""
    scaled = Image.fromarray(image).convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.asarray(scaled, dtype=np.uint8)[:, :, 0]


def dense_labels(phantom: Phantom) -> npt.NDArray[np.uint8]:
    """(VISUAL_TOKENS, labels) of 0 or 1: a cell holds a label when 15 % of it, or a quarter of the region, is there."""
    out = np.zeros((_CELLS, _CELLS, len(DENSE_LABELS)), dtype=np.uint8)
    for name, region in phantom.masks.items():
        edges = np.linspace(0, region.shape[0], _CELLS + 1).round().astype(np.int64)
        counts = np.add.reduceat(np.add.reduceat(region.astype(np.int64), edges[:-1], 0), edges[:-1], 1)
        area = (region.shape[0] / _CELLS) ** 2
        hit = (counts > 0.15 * area) | (counts > 0.25 * max(1, int(counts.sum())))
        out[:, :, DENSE_LABELS.index(name)] = hit
    return out.reshape(VISUAL_TOKENS, len(DENSE_LABELS))


def image_labels(phantom: Phantom) -> npt.NDArray[np.uint8]:
    """(labels,) of 0 or 1 for the whole image."""
    return np.array([name in phantom.masks for name in DENSE_LABELS], dtype=np.uint8)


class Corpus:
    """``count`` phantoms of the series ``seed`` under ``folder``; reading waits for what is not generated yet."""

    def __init__(self, folder: Path, seed: int, count: int) -> None:
        self.folder, self.seed, self.count = folder, seed, count
        folder.mkdir(parents=True, exist_ok=True)
        self._images = self._open("images", (count, IMAGE_SIZE, IMAGE_SIZE))
        self._dense = self._open("dense", (count, VISUAL_TOKENS, len(DENSE_LABELS)))
        self._labels = self._open("labels", (count, len(DENSE_LABELS)))
        self._done = self._open("done", (count,))
        self._process: Any = None

    def _open(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        path = self.folder / f"{name}.npy"
        if not path.exists():
            return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        array: npt.NDArray[np.uint8] = np.lib.format.open_memmap(path, mode="r+")
        if array.shape != shape:
            raise ValueError(f"{path} was made for {array.shape[0]} phantoms, not {shape[0]}: use another work folder")
        return array

    def fill(self) -> None:
        """Generate what is missing, in order."""
        for index in np.flatnonzero(np.asarray(self._done) == 0).tolist():
            phantom = generate_phantom(self.seed, index)
            self._images[index] = model_pixels(phantom.image)
            self._dense[index] = dense_labels(phantom)
            self._labels[index] = image_labels(phantom)
            self._done[index] = 1

    def start(self) -> None:
        """Generate in a process of its own, at low priority."""
        if self._process is None and not bool(np.all(self._done)):
            context = multiprocessing.get_context("spawn")
            self._process = context.Process(target=_fill, args=(self.folder, self.seed, self.count), daemon=True)
            self._process.start()

    def stop(self) -> None:
        """End the generating process; what it wrote stays."""
        if self._process is not None:
            self._process.terminate()
            self._process.join()
            self._process = None

    def rows(self, step: int, batch: int) -> npt.NDArray[np.int64]:
        """Indices of a step's batch: the corpus in order, again and again (phantoms are drawn independently)."""
        return (np.arange(batch, dtype=np.int64) + step * batch) % self.count

    def wait(self, rows: npt.NDArray[np.int64]) -> None:
        """Wait until the rows exist. Raises RuntimeError when nobody is generating them."""
        while True:
            alive = self._process is not None and self._process.is_alive()  # asked first: it may be done just now
            if bool(np.all(self._done[rows])):
                return
            if not alive:
                raise RuntimeError("phantoms are missing and their generator is not running")
            time.sleep(0.2)

    def batch(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Grey images (B, IMAGE_SIZE, IMAGE_SIZE), image labels (B, labels), cell labels (B, VISUAL_TOKENS, labels)."""
        self.wait(rows)
        return self._images[rows], self._labels[rows].astype(np.float32), self._dense[rows].astype(np.float32)


def _fill(folder: Path, seed: int, count: int) -> None:
    os.nice(5)
    Corpus(folder, seed, count).fill()
