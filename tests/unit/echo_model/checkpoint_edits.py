"""Ways to spoil a checkpoint folder, and to look at what was loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; `...` removes one."""
    values = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({key: value for key, value in (values | changes).items() if value is not ...}))


def rewrite(folder: Path, change: Callable[[Tensors], Any], name: str = "model.safetensors") -> None:
    """Change the tensors of one file."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)


def shard(folder: Path, parts: int = 2) -> list[str]:
    """Split `model.safetensors` into shards with an index; returns their names."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = [f"model-{number:05d}-of-{parts:05d}.safetensors" for number in range(1, parts + 1)]
    weight_map = {name: files[number * parts // len(names)] for number, name in enumerate(names)}
    for file in files:
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return files


def logits(model: Any) -> torch.Tensor:
    """What a model says to fixed tokens."""
    ids = torch.randint(6, 200, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=ids).logits
    return result


def assert_same(model: Any, other: Any) -> None:
    """Parameters, buffers and answers are equal bit for bit."""
    wanted = dict(other.named_parameters()) | dict(other.named_buffers())
    got = dict(model.named_parameters()) | dict(model.named_buffers())
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        assert torch.equal(value, wanted[name]), name
    assert model.state_dict().keys() == other.state_dict().keys()
    assert torch.equal(logits(model), logits(other))
