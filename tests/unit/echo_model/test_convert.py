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
from echo_model.guards import LEXICON_FILE, Lexicon, load_lexicon
from echo_model.model import load_model
from unit.echo_model.checkpoint_edits import edit, logits, shard
from unit.echo_model.tiny_checkpoint import IM_END, MASK, tiny_model, write_checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source", tiny_model(3), generation={"model_id": "small"})


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
    Lexicon.fit(["No line."]).save(source / LEXICON_FILE)
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
    assert load_lexicon(tmp_path / "new") == load_lexicon(source) is not None
    assert not (tmp_path / "new" / "evil.bin").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
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


def test_a_checkpoint_with_code_becomes_one_without(tmp_path: Path, source: Path) -> None:
    wanted = logits(load_model(source).model)
    shard(source)
    code = {"AutoModel": "modeling_own.OwnModel"}
    edit(source / "config.json", auto_map=code, architectures=["OwnModel"], attn_implementation="flash_attention_2")
    edit(source / "tokenizer_config.json", auto_map=code, mask_token="<|MASK|>")
    (source / "modeling_own.py").write_text("raise SystemExit('this must never run')")
    assert load_model(source).notices
    convert(source, tmp_path / "new")
    after = load_model(tmp_path / "new")
    assert after.notices == ()
    assert torch.equal(logits(after.model), wanted)
    assert json.loads((tmp_path / "new" / "tokenizer_config.json").read_text()) == {"mask_token": "<|MASK|>"}
    assert not list((tmp_path / "new").glob("*.py"))


def test_settings_are_written_in_and_checked(tmp_path: Path, source: Path) -> None:
    edit(source / "preprocessor_config.json", image_size=None)
    generation = {"block_length": 8, "denoising_steps": 2, "instruction": "Review this film."}
    convert(source, tmp_path / "new", generation=generation, max_pixels=50_000)
    after = load_model(tmp_path / "new")
    assert generation.items() <= after.generation_config.items()
    assert after.eos_token_ids == (IM_END,)
    assert after.image_config.max_pixels == 50_000
    with pytest.raises(SettingsError, match="denoising_steps"):
        convert(source, tmp_path / "wrong", generation={"block_length": 4, "denoising_steps": 9})
    assert not (tmp_path / "wrong").exists()


def test_a_tokenizer_of_older_files_is_written_as_one(tmp_path: Path, source: Path) -> None:
    raw = json.loads((source / "tokenizer.json").read_text())
    added = {token["content"]: token["id"] for token in raw["added_tokens"]}
    words = {token: number + len(added) for number, token in enumerate(sorted(set(raw["model"]["vocab"]) - set(added)))}
    (source / "tokenizer.json").unlink()
    (source / "vocab.json").write_text(json.dumps(added | words))
    (source / "merges.txt").write_text("#version: 0.2\n")
    (source / "added_tokens.json").write_text(json.dumps(added))
    before = load_model(source)
    convert(source, tmp_path / "new")
    text = "<|im_start|>No effusion.<|im_end|>"
    (tmp_path / "new" / "added_tokens.json").unlink()
    assert load_model(tmp_path / "new").tokenizer.encode(text).ids == before.tokenizer.encode(text).ids


@pytest.mark.parametrize("flip", [0, 4000])
def test_what_is_read_back_otherwise_gets_no_name(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, flip: int
) -> None:
    """A byte that changes on the way to the disk, at the front or the end of the values."""

    def bad_disk(tensors: dict[str, torch.Tensor], file: Path, **options: Any) -> None:
        save_file(tensors, file, **options)
        content = bytearray(file.read_bytes())
        content[-1 - flip] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr("echo_model.convert.save_file", bad_disk)
    with pytest.raises(CheckpointError, match="was read back otherwise"):
        convert(source, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_values_that_are_no_numbers_are_carried_over(tmp_path: Path, source: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors["model.language_model.norm.weight"][3] = float("nan")
    save_file(tensors, source / "model.safetensors")
    convert(source, tmp_path / "new")
    assert load_model(tmp_path / "new").model.model.language_model.norm.weight[3].isnan()


def test_the_command(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--dtype", "bfloat16", "--max-shard-size", "100KB", "--block-length", "8", "--instruction", "Look."]
    (source / "pytorch_model.bin").write_bytes(b"")
    assert main(["convert", str(source), str(tmp_path / "new"), *options]) == 0
    printed = capsys.readouterr().out
    assert "note: pytorch_model.bin is a pickle" in printed
    assert "small written to" in printed
    assert len(list((tmp_path / "new").glob("model-*.safetensors"))) > 2
    assert load_model(tmp_path / "new").generation_config["block_length"] == 8
    assert load_model(tmp_path / "new").generation_config["instruction"] == "Look."
    with pytest.raises(SystemExit):
        main(["convert", str(source), str(tmp_path / "other"), "--max-shard-size", "0GB"])
    capsys.readouterr()
    assert main(["convert", str(source), str(tmp_path / "new")]) == 2
    assert "exists already" in capsys.readouterr().err
