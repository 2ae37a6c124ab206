"""What a teacher decoded for a whole corpus, on disk in shards: written once, taken up where it was cut off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from echo_model.training.rollout import Trajectories, looping

_SMALL = {
    "ids": torch.int32,
    "step": torch.uint8,
    "top_ids": torch.int32,
    "top_log": torch.float16,
    "open": torch.bool,
    "ended": torch.bool,
}


def write_shards(
    folder: Path,
    decode: Callable[[range], Trajectories],
    count: int,
    shard: int = 256,
    *,
    done: Callable[[int], None] = lambda rows: None,
    own: tuple[int, int] = (0, 1),
) -> None:
    """Decode the rows 0 .. count - 1 in shards; what is there already is kept. ``done`` gets the finished rows.

    ``own``: of several processes, the number of this one and how many there are; each writes every so many-th shard.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(own[0] * shard, count, own[1] * shard):
        path = folder / f"{start:08d}.safetensors"
        if not path.exists():
            paths = decode(range(start, min(count, start + shard)))
            part = path.with_suffix(".part")
            save_file({key: getattr(paths, key).to(kind).contiguous() for key, kind in _SMALL.items()}, part)
            part.replace(path)
        done(min(count, start + shard))


def join(parts: list[Trajectories], eos: int) -> Trajectories:
    """One batch out of several; the narrower ones are filled up with closed end tokens."""
    width = max(part.ids.shape[1] for part in parts)

    def wide(key: str) -> torch.Tensor:
        values = []
        for part in parts:
            value = getattr(part, key)
            lack = width - value.shape[1] if value.ndim > 1 else 0
            pad = (0, 0, 0, lack) if value.ndim == 3 else (0, lack)
            values.append(functional.pad(value, pad, value=eos if key == "ids" else 0) if lack else value)
        return torch.cat(values)

    return Trajectories(*(wide(key) for key in _SMALL))


class StoredTrajectories:
    """All usable answers of a folder of shards in memory, in their compact types.

    ``rows``: int64, the corpus row of each; ``lengths``: positions up to the end of its last block. ``counts``: how
    many were decoded, and how many of them were dropped because they loop, never end or are wrong: ``agrees`` gets the
    row and the tokens of an answer, and says whether it is worth teaching.
    """

    def __init__(self, folder: Path, eos: int, agrees: Callable[[int, list[int]], bool] | None = None) -> None:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{folder} holds no trajectories")
        whole = join([Trajectories(**load_file(file)) for file in files], eos)
        loop = looping(whole)
        keep = whole.ended & ~loop
        if agrees is not None:
            for row in keep.nonzero()[:, 0].tolist():
                answer = whole.ids[row][(whole.step[row] > 0) & (whole.ids[row] != eos)]
                keep[row] = agrees(row, answer.tolist())
        self.counts = {
            "decoded": len(keep),
            "loops": int(loop.sum()),
            "endless": int((~whole.ended & ~loop).sum()),
            "wrong": int((whole.ended & ~loop & ~keep).sum()),
            "used": int(keep.sum()),
        }
        if not bool(keep.any()):
            raise ValueError(f"{folder} holds no answer that is worth teaching: the teacher needs more training")
        self._paths = whole.chosen(keep)
        self.rows: Any = keep.nonzero()[:, 0].numpy()
        at = torch.arange(self._paths.ids.shape[1])
        self.lengths: Any = ((at + 1) * self._paths.open).amax(dim=1).numpy()

    def batch(self, places: Any) -> Trajectories:
        """Some of them (places in ``rows``), as wide as the longest, in the types that training wants."""
        some = self._paths.chosen(torch.as_tensor(places))
        width = int(self.lengths[places].max())
        return Trajectories(
            some.ids[:, :width].long(),
            some.step[:, :width].long(),
            some.top_ids[:, :width].long(),
            some.top_log[:, :width].float(),
            some.open[:, :width],
            some.ended,
        )
