"""Visual tokens of the whole corpus, computed once: the tower stays frozen after stage 0."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from echo_model.training.corpus import Corpus
from echo_model.training.loop import Stopped
from echo_model.training.shape import TEXT_HIDDEN, VISUAL_TOKENS, encode_grey


class Features:
    """float16 visual tokens (VISUAL_TOKENS, TEXT_HIDDEN) of every phantom of a corpus, on disk."""

    def __init__(self, folder: Path, count: int) -> None:
        path, done = folder / "features.npy", folder / "features.done.npy"
        new = not path.exists()
        shape = (count, VISUAL_TOKENS, TEXT_HIDDEN)
        self._values: Any = np.lib.format.open_memmap(
            path, mode="w+" if new else "r+", dtype=np.float16 if new else None, shape=shape if new else None
        )
        self._done: Any = np.lib.format.open_memmap(
            done, mode="w+" if new else "r+", dtype=np.uint8 if new else None, shape=(count,) if new else None
        )
        if self._values.shape != shape:
            raise ValueError(f"{path} holds {self._values.shape[0]} phantoms, not {count}: use another work folder")

    @torch.no_grad()
    def fill(
        self,
        visual: Any,
        corpus: Corpus,
        count: int,
        *,
        say: Callable[[str], None] = lambda line: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Compute what is missing of the first ``count`` phantoms with the trained tower. Raises Stopped when asked."""
        missing = np.flatnonzero(np.asarray(self._done[:count]) == 0)
        started = shown = time.monotonic()
        for start in range(0, len(missing), 32):
            if stopped():
                raise Stopped(f"features stopped after {start} of {len(missing)} images")
            rows = missing[start : start + 32]
            self._values[rows] = encode_grey(visual, corpus.batch(rows)[0]).numpy().astype(np.float16)
            self._done[rows] = 1
            now = time.monotonic()
            if now - shown > 20:
                finished = start + len(rows)
                left = (len(missing) - finished) * (now - started) / finished
                speed = finished / (now - started)
                say(f"features  {finished}/{len(missing)}  {speed:.1f} images/s  {left / 60:.1f} min left")
                shown = now

    def rows(self, rows: Any) -> torch.Tensor:
        """Visual tokens of some phantoms, float32 (B, VISUAL_TOKENS, TEXT_HIDDEN)."""
        return torch.from_numpy(np.asarray(self._values[rows]).astype(np.float32))


def see_corpus(visual: Any, corpus: Corpus, *, say: Callable[[str], None], stopped: Callable[[], bool]) -> Features:
    """All phantoms of a corpus as a trained tower sees them; they are drawn meanwhile. Raises Stopped when asked."""
    features = Features(corpus.folder, corpus.count)
    corpus.start()
    try:
        features.fill(visual, corpus, corpus.count, say=say, stopped=stopped)
    finally:
        corpus.stop()
    return features
