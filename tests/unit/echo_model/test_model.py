from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from echo_model.errors import CheckpointError, SettingsError
from echo_model.inspection import inspect_checkpoint
from echo_model.model import load_model
from unit.echo_model.tiny_checkpoint import MASK, tiny_model, tiny_tokenizer, write_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = tiny_model(3)
    return model, write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", model)


@pytest.fixture
def folder(source: tuple[Any, Path], tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(source[1], tmp_path / "copy")
    return tmp_path / "copy"


def edit(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in (values | changes).items() if value is not ...}))


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def assert_same(model: Any, other: Any) -> None:
    wanted = dict(other.named_parameters()) | dict(other.named_buffers())
    got = dict(model.named_parameters()) | dict(model.named_buffers())
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        assert torch.equal(value, wanted[name]), name
    ids = torch.randint(6, 200, (1, 9))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, other(input_ids=ids).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_loading_gives_back_the_model_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    model = tiny_model(5, tied=tied)
    loaded = load_model(write_checkpoint(tmp_path / "a", model))
    assert_same(loaded.model, model)
    head, embedding = loaded.model.lm_head.weight, loaded.model.model.language_model.embed_tokens.weight
    assert (head is embedding) is tied
    assert not loaded.model.training
    assert loaded.mask_token_id == MASK
    assert loaded.model_id == "a"


def test_a_checkpoint_saved_by_transformers_in_the_older_layout_loads(source: tuple[Any, Path], folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    source[0].save_pretrained(folder)
    names = load_file(folder / "model.safetensors").keys()
    assert "model.embed_tokens.weight" in names, "this transformers writes another layout: adapt the test"
    assert_same(load_model(folder).model, source[0])


def test_shards_load_as_one(source: tuple[Any, Path], folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"m-1.safetensors": names[: len(names) // 2], "m-2.safetensors": names[len(names) // 2 :]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same(load_model(folder).model, source[0])
    (folder / "m-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"m-2\.safetensors is missing"):
        load_model(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../m-1.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"no safetensors file of this folder"):
        load_model(folder)


def test_dtype_and_device(folder: Path) -> None:
    assert load_model(folder).model.lm_head.weight.dtype == torch.float32
    assert load_model(folder, dtype="bfloat16").model.lm_head.weight.dtype == torch.bfloat16
    with pytest.raises(SettingsError, match="float8"):
        load_model(folder, dtype="float8")
    with pytest.raises(SettingsError, match="toaster"):
        load_model(folder, device="toaster")
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="no CUDA"):
            load_model(folder, device="cuda")


def test_revision_follows_the_weights(folder: Path) -> None:
    before = load_model(folder).revision
    assert len(before) == 12
    rewrite(folder, lambda tensors: tensors["model.language_model.norm.weight"].add_(1))
    assert load_model(folder).revision != before


TENSOR = "model.language_model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(TENSOR), f"{TENSOR} is missing"),
        (lambda t: t.pop("model.language_model.embed_tokens.weight"), "lm_head.weight is missing .and 1 more"),
        (lambda t: t.update({"model.extra.weight": torch.ones(2)}), "model.extra.weight is not part of"),
        (lambda t: t.update({TENSOR: t[TENSOR][:-1].clone()}), rf"{TENSOR} has shape \(127, 64\), .* \(128, 64\)"),
        (lambda t: t.update({TENSOR: t[TENSOR].int()}), f"{TENSOR} holds torch.int32"),
        (lambda t: t.update({"lm_head.weight": torch.ones(300, 64)}), "lm_head.weight differs from the embedding"),
        (lambda t: t.update({"visual.merger.ln_q.weight": torch.ones(32)}), "merger.ln_q.weight is given twice"),
    ],
)
def test_wrong_tensors_are_named(folder: Path, change: Any, message: str) -> None:
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"])
def test_missing_and_damaged_files_are_named(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=name):
        load_model(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is missing"):
        load_model(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        load_model(tmp_path / "absent")


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


def test_pickles_are_never_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle"):
        load_model(folder)
    assert not (folder / "sprung").exists()


def test_code_in_the_checkpoint_is_never_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "modeling_trap.py").write_text("from pathlib import Path; Path('sprung').touch()")
    load_model(folder)
    edit(folder / "config.json", auto_map={"AutoModel": "modeling_trap.Trap"})
    with pytest.raises(CheckpointError, match="auto_map"):
        load_model(folder)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"text_config": {"hidden_size": "wide"}}, "config.json cannot be used"),
        ({"text_config": {"hidden_size": 65}}, "config.json"),
    ],
)
def test_unusable_configurations_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_sliding_window_attention_is_refused(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    text |= {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True, "sliding_window": 8}
    edit(folder / "config.json", text_config=text)
    with pytest.raises(CheckpointError, match="sliding-window"):
        load_model(folder)


def test_where_the_mask_token_comes_from(folder: Path) -> None:
    edit(folder / "config.json", mask_token_id=7)
    assert load_model(folder).mask_token_id == 7
    edit(folder / "generation_config.json", mask_token_id=8)
    assert load_model(folder).mask_token_id == 8
    edit(folder / "generation_config.json", mask_token_id=3000)
    with pytest.raises(CheckpointError, match="mask_token_id 3000"):
        load_model(folder)
    edit(folder / "generation_config.json", mask_token_id=...)
    edit(folder / "config.json", mask_token_id=...)
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": {"content": "<|vision_end|>"}}))
    assert load_model(folder).mask_token_id == 3
    (folder / "tokenizer_config.json").unlink()
    raw = tiny_tokenizer().to_str().replace("<|MASK|>", "<|other|>")
    Tokenizer.from_str(raw).save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="no mask token"):
        load_model(folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"word{number}" for number in range(100)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="knows 362 tokens, the weights only 300"):
        load_model(folder)


def test_inspection_counts_without_loading(source: tuple[Any, Path], folder: Path) -> None:
    found = inspect_checkpoint(folder)
    assert found["parameters"] == sum(parameter.numel() for parameter in source[0].parameters())
    assert found["dtypes"] == ["F32"]
    assert found["revision"] == load_model(folder).revision
    assert found["language_model"]["key_value_heads"] == 2
    rewrite(folder, lambda tensors: tensors.pop(TENSOR))
    with pytest.raises(CheckpointError, match=TENSOR):
        inspect_checkpoint(folder)
