"""The tensors of a checkpoint folder: where each one lies, what it is called today, and nothing but safetensors.

Everything that can be known from the headers is checked before a value is read. Values of the wanted type stay mapped
from the file on a CPU; others are converted one tensor at a time, so that loading never holds a checkpoint twice.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from echo_model.errors import CheckpointError
from echo_model.json_files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Older files keep the vision tower and the language model side by side at the top, newer ones below `model.`; some
# hold the language model as a whole model of its own.
_KEY_MAP = (
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(?!visual\.|language_model\.)"), "model.language_model."),
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a file holds it: `key` is its name there, `dtype` the safetensors name of its type, `begin` the
    byte of the file where its values start."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    begin: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    def mapped(self) -> torch.Tensor:
        """The values as a view of the file, page by page on first use, given back when the tensor goes.

        Private: writing to it copies pages and never reaches the file. Each tensor has a mapping of its own, so one
        that is replaced (converted, packed with others) does not stay resident because its neighbours are in use.
        """
        dtype = DTYPES[self.dtype]
        if self.nbytes == 0:
            return torch.empty(self.shape, dtype=dtype)
        first = self.begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        skipped = self.begin - first
        with self.file.open("rb") as stream:
            pages = mmap.mmap(stream.fileno(), skipped + self.nbytes, access=mmap.ACCESS_COPY, offset=first)
        if skipped % dtype.itemsize:  # allowed by the format, though no writer of today leaves it so
            values = torch.frombuffer(bytearray(pages[skipped:]), dtype=dtype)
        else:
            values = torch.frombuffer(pages, dtype=dtype, count=prod(self.shape), offset=skipped)
        return values.view(self.shape)


@dataclass(frozen=True)
class Weights:
    """All tensors of a folder by their name in today's layout, and the files that hold them, sorted."""

    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]
    notices: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def main_dtype(self) -> torch.dtype:
        """The type that holds most of the numbers."""
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + prod(tensor.shape)
        return DTYPES[max(counts, key=lambda kind: counts[kind])] if counts else torch.float32

    def revision(self) -> str:
        """First 12 hex digits of the SHA-256 over the files in order."""
        digest = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 22):
                    digest.update(chunk)
        return digest.hexdigest()[:12]

    def read(self, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
        """Every tensor in the wanted type on the device.

        Where nothing is to be converted or moved the tensors are views of the files (see `StoredTensor.mapped`), so the
        files must not change while the model lives. Raises CheckpointError when a file cannot be read.
        """
        try:
            return {name: stored.mapped().to(device=device, dtype=dtype) for name, stored in self.tensors.items()}
        except (OSError, ValueError) as error:
            raise CheckpointError(f"the weights cannot be read: {error}") from error


def find_weights(folder: Path) -> Weights:
    """Look through the headers of a folder's safetensors files.

    Raises CheckpointError naming the file or tensor: no safetensors, pickles only, a damaged file, a type that is not
    floating point, a tensor given twice, an index that names other tensors or files than there are.
    """
    single, index = folder / SINGLE, folder / INDEX
    notices: list[str] = []
    if index.is_file():
        weight_map, total = _read_index(folder)
        if single.is_file() and set(weight_map.values()) != {SINGLE}:
            raise CheckpointError(f"{SINGLE} and {INDEX} name different weights; remove the one that is not meant")
        files = tuple(folder / name for name in sorted(set(weight_map.values())))
    elif single.is_file():
        weight_map, total, files = None, None, (single,)
    else:
        raise CheckpointError(_why_no_weights(folder))
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        held = _headers(file)
        for stored in held:
            name = canonical_key(stored.key)
            if name in tensors:
                other = tensors[name]
                raise CheckpointError(
                    f"tensor {stored.key} in {file.name} is given twice: as {other.key} in {other.file.name} too"
                )
            tensors[name] = stored
        if weight_map is not None:
            _compare_index(weight_map, file, {stored.key for stored in held})
    size = sum(stored.nbytes for stored in tensors.values())
    if total is not None and total != size:
        raise CheckpointError(
            f"{INDEX} says total_size {total}, the files hold {size} bytes of tensors: a file of another checkpoint? "
            "(if they are known to be right, remove total_size)"
        )
    pickles = _pickles(folder)
    if pickles:
        notices.append(f"{pickles[0]} is a pickle and is not opened; the safetensors are used")
    stray = sorted({file.name for file in folder.glob("model*.safetensors")} - {file.name for file in files})
    if stray:
        notices.append(f"{stray[0]} is not named by {INDEX} and is not used")
    return Weights(files, tensors, tuple(notices))


def canonical_key(key: str) -> str:
    """A tensor's name in today's layout."""
    for pattern, replacement in _KEY_MAP:
        renamed, count = pattern.subn(replacement, key)
        if count:
            return renamed
    return key


def layout_of(weights: Weights) -> str:
    """Which naming the files use: `newer` (below `model.`), `older`, `side by side` or `mixed`."""
    kinds = set()
    for name, stored in weights.tensors.items():
        if stored.key.startswith("language_model."):
            kinds.add("side by side")
        elif name.startswith("model.language_model."):
            kinds.add("newer" if stored.key == name else "older")
    return kinds.pop() if len(kinds) == 1 else "mixed"


def _read_index(folder: Path) -> tuple[dict[str, str], int | None]:
    """File of each tensor and the total number of bytes (None: not told)."""
    raw = read_json(folder / INDEX)
    weight_map, metadata = raw.get("weight_map"), raw.get("metadata")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX} holds no weight_map")
    for key, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{INDEX} puts {key} into {name!r}, which is no safetensors file of this folder")
        if not (folder / name).is_file():
            raise CheckpointError(f"{name} is missing, though {INDEX} names it")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return weight_map, total if isinstance(total, int) else None


def _compare_index(weight_map: Mapping[str, str], file: Path, held: set[str]) -> None:
    named = {key for key, name in weight_map.items() if name == file.name}
    for key in sorted(named - held):
        raise CheckpointError(f"tensor {key} is not in {file.name}, though {INDEX} says so")
    for key in sorted(held - named):
        raise CheckpointError(f"tensor {key} is in {file.name}, but {INDEX} does not name it there")


def _headers(file: Path) -> list[StoredTensor]:
    """What a file holds, its types checked, without its values."""
    try:
        # The library checks the whole layout: sizes against types and shapes, order, overlaps, gaps, the file's end.
        with safe_open(str(file), framework="pt"):
            pass
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(length))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file.name} is damaged or no safetensors file: {error}") from error
    held: list[StoredTensor] = []
    for key, entry in sorted(header.items()):
        if key == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(
                f"tensor {key} in {file.name} holds {entry['dtype']}; only {', '.join(DTYPES)} are read"
            )
        begin = 8 + length + entry["data_offsets"][0]
        held.append(StoredTensor(file, key, tuple(entry["shape"]), entry["dtype"], begin))
    return held


def _pickles(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLED)


def _why_no_weights(folder: Path) -> str:
    pickles = _pickles(folder)
    if pickles:
        return f"{pickles[0]} is a pickle and is never opened; convert it to {SINGLE}"
    if (folder / "adapter_model.safetensors").is_file():
        return f"{SINGLE} is missing: adapter_model.safetensors is an adapter, merge it into its base model first"
    return f"{SINGLE} is missing"
