"""Conversion: the same model comes out of every layout that goes in, and what is refused leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from echo_model.cli import main
from echo_model.convert import convert
from echo_model.errors import CheckpointError, SettingsError
from echo_model.model import load_model
from unit.echo_model.tiny_checkpoint import MASK, tiny_model, write_checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source", tiny_model(3), generation={"model_id": "small"})


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(6, 200, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=ids).logits
    return result


def older(name: str) -> str:
    """Tower and language model side by side at the top."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def side(name: str) -> str:
    """The language model as a whole model of its own."""
    return name.replace("model.language_model.", "language_model.model.").replace("model.visual.", "visual.")


@pytest.mark.parametrize("rename", [str, older, side])
@pytest.mark.parametrize("tied", [True, False])
def test_every_layout_gives_the_same_logits(tmp_path: Path, rename: Callable[[str], str], tied: bool) -> None:
    model = tiny_model(3, tied=tied)
    source = write_checkpoint(tmp_path / "source", model)
    tensors = load_file(source / "model.safetensors")
    save_file({rename(name): value for name, value in tensors.items()}, source / "model.safetensors")
    convert(source, tmp_path / "new")
    assert load_file(tmp_path / "new" / "model.safetensors").keys() == tensors.keys()
    assert torch.equal(logits(load_model(tmp_path / "new").model), logits(model))


def test_shards_in_and_shards_out(tmp_path: Path, source: Path) -> None:
    wanted = logits(load_model(source).model)
    convert(source, tmp_path / "many", shard_bytes=40_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(files) > 2
    assert {file.name for file in files} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == sum(t.nbytes for file in files for t in load_file(file).values())
    assert not (tmp_path / "many" / "model.safetensors").exists()
    assert torch.equal(logits(load_model(tmp_path / "many").model), wanted)
    convert(tmp_path / "many", tmp_path / "one")
    assert torch.equal(logits(load_model(tmp_path / "one").model), wanted)


def test_everything_a_request_depends_on_comes_along(tmp_path: Path, source: Path) -> None:
    (source / "domain.safetensors").write_bytes(b"as it is")
    (source / "evil.bin").write_bytes(b"a pickle")
    before = load_model(source)
    convert(source, tmp_path / "new")
    (tmp_path / "new" / "domain.safetensors").unlink()
    after = load_model(tmp_path / "new")
    assert after.image_config == before.image_config
    assert after.generation_config["eos_token_ids"] == before.generation_config["eos_token_ids"]
    assert after.generation_config["block_length"] == 4
    assert after.generation_config["instruction"] == "Read."
    assert after.mask_token_id == MASK
    assert after.model_id == "small"
    assert after.tokenizer.encode("pleura").ids == before.tokenizer.encode("pleura").ids
    assert not (tmp_path / "new" / "evil.bin").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_type_is_the_one_asked_for_and_then_kept(tmp_path: Path, source: Path, dtype: str) -> None:
    convert(source, tmp_path / "small", dtype)
    convert(tmp_path / "small", tmp_path / "again")
    wanted = load_model(source).model.to(getattr(torch, dtype)).state_dict()
    for folder in ("small", "again"):
        tensors = load_file(tmp_path / folder / "model.safetensors")
        assert all(torch.equal(value, wanted[name]) for name, value in tensors.items())
        assert json.loads((tmp_path / folder / "config.json").read_text())["dtype"] == dtype


def test_what_the_loader_refuses_is_refused_and_leaves_nothing(tmp_path: Path, source: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    del tensors["model.language_model.norm.weight"]
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"norm\.weight is missing"):
        convert(source, tmp_path / "new")
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickle"):
        convert(source, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        convert(source, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_nothing_is_overwritten_and_types_are_checked(tmp_path: Path, source: Path) -> None:
    with pytest.raises(CheckpointError, match="exists already"):
        convert(source, source)
    with pytest.raises(CheckpointError, match="parent folder"):
        convert(source, tmp_path / "no" / "new")
    with pytest.raises(SettingsError, match="int8"):
        convert(source, tmp_path / "new", "int8")


def test_the_command(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(source), str(tmp_path / "new"), "--dtype", "bfloat16"]) == 0
    assert "small" in capsys.readouterr().out
    assert main(["convert", str(source), str(tmp_path / "new")]) == 2
    assert "exists already" in capsys.readouterr().err
