"""What is refused, by name: pickles, code, damaged files, wrong, missing and surplus tensors, stray indices."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from echo_model.errors import CheckpointError
from echo_model.model import load_model
from unit.echo_model.checkpoint_edits import Tensors, assert_same, edit, rewrite, shard
from unit.echo_model.tiny_checkpoint import tiny_model, tiny_tokenizer, write_checkpoint

TENSOR = "model.language_model.layers.1.mlp.up_proj.weight"
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = tiny_model(3)
    return model, write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", model)


@pytest.fixture
def folder(source: tuple[Any, Path], tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(source[1], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(TENSOR), f"tensor {TENSOR} is missing$"),
        (lambda t: t.pop("model.language_model.embed_tokens.weight"), "lm_head.weight is missing .and 1 more"),
        (lambda t: t.update({"model.extra.weight": torch.ones(2)}), "model.extra.weight is not part of"),
        (lambda t: t.update({TENSOR: t[TENSOR][:-1].clone()}), rf"{TENSOR} has shape \(127, 64\), .* \(128, 64\)"),
        (lambda t: t.update({TENSOR: t[TENSOR].T.contiguous()}), rf"{TENSOR} has shape \(64, 128\), .* \(128, 64\)"),
        (lambda t: t.update({TENSOR: t[TENSOR].int()}), rf"{TENSOR} in model\.safetensors holds I32"),
        (lambda t: t.update({TENSOR: t[TENSOR].to(torch.float8_e4m3fn)}), rf"{TENSOR} in .* holds F8_E4M3"),
        (lambda t: t.update({TENSOR: t[TENSOR] > 0}), rf"{TENSOR} in .* holds BOOL"),
        (lambda t: t.update({"lm_head.weight": torch.ones(300, 64)}), "lm_head.weight differs from the embedding"),
        (lambda t: t.update({"visual.merger.ln_q.weight": torch.ones(32)}), "visual.merger.ln_q.weight .* given twice"),
    ],
)
def test_wrong_tensors_are_named(folder: Path, change: Callable[[Tensors], Any], message: str) -> None:
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


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "generation_config.json", "tokenizer_config.json", INDEX]
)
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000], ids=["cut", "list", "binary", "deep"])
def test_files_that_are_no_json_object_are_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} (is not JSON|holds no JSON object)"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_cut_weights_are_named(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_model(folder)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


def test_pickles_are_never_opened(source: tuple[Any, Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    loaded = load_model(folder)
    assert_same(loaded.model, source[0])
    assert loaded.notices == ("pytorch_model.bin is a pickle and is not opened; the safetensors are used",)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle"):
        load_model(folder)
    shutil.copyfile("pytorch_model.bin", folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or no safetensors file"):
        load_model(folder)
    assert not (folder / "sprung").exists()


def test_an_adapter_alone_is_no_checkpoint(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="merge it into its base model first"):
        load_model(folder)


def test_code_in_the_checkpoint_is_never_run(
    source: tuple[Any, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "modeling_trap.py").write_text("from pathlib import Path; Path('sprung').touch()")
    load_model(folder)
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        edit(folder / name, auto_map={"AutoModel": "modeling_trap.Trap", "AutoConfig": "modeling_trap.Trap"})
    loaded = load_model(folder)
    assert_same(loaded.model, source[0])
    assert [notice.partition(" ")[0] for notice in loaded.notices] == [
        "config.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
    ]
    assert all("never run" in notice for notice in loaded.notices)
    edit(folder / "config.json", model_type="trap", architectures=["Trap"])
    with pytest.raises(CheckpointError, match=r"model_type is 'trap'.*code.*never run"):
        load_model(folder)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "model_type is 'llama'"),
        ({"model_type": ..., "architectures": ...}, "model_type is None"),
        ({"text_config": {"hidden_size": "wide"}}, "config.json cannot be used"),
        ({"text_config": {"hidden_size": 65}}, "config.json"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
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


@pytest.mark.parametrize("name", ["patch_size", "temporal_patch_size", "merge_size"])
def test_pictures_cut_otherwise_than_the_tower_wants_are_refused(folder: Path, name: str) -> None:
    edit(folder / "preprocessor_config.json", **{name: 1})
    with pytest.raises(CheckpointError, match=f"say {name} 1, config.json wants"):
        load_model(folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"word{number}" for number in range(100)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="numbers 362 tokens, the weights hold only 300"):
        load_model(folder)


def forget(folder: Path) -> str:
    """The index does not name a tensor that its shard holds."""
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    del weight_map[TENSOR]
    edit(folder / INDEX, weight_map=weight_map)
    return rf"tensor {TENSOR} is in {FIRST}, but {INDEX} does not name it there"


def invent(folder: Path) -> str:
    """The index names a tensor that its shard does not hold."""
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    edit(folder / INDEX, weight_map=weight_map | {"model.norm.bias": SECOND})
    return rf"tensor model\.norm\.bias is not in {SECOND}, though {INDEX} says so"


def misplace(folder: Path) -> str:
    """The index puts a tensor into the other shard."""
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    edit(folder / INDEX, weight_map=weight_map | {TENSOR: SECOND})
    return rf"tensor {TENSOR} is in {FIRST}, but"


def double(folder: Path) -> str:
    """Both shards hold a tensor."""
    rewrite(folder, lambda tensors: tensors.update({TENSOR: torch.ones(128, 64)}), SECOND)
    return rf"tensor {TENSOR} in {SECOND} is given twice: as {TENSOR} in {FIRST} too"


def double_under_an_older_name(folder: Path) -> str:
    """One shard holds a tensor under its older name."""
    older = TENSOR.replace("model.language_model.", "model.")
    rewrite(folder, lambda tensors: tensors.update({older: torch.ones(128, 64)}), SECOND)
    return rf"tensor {older} in {SECOND} is given twice: as {TENSOR} in {FIRST} too"


def lose(folder: Path) -> str:
    (folder / SECOND).unlink()
    return rf"{SECOND} is missing, though {INDEX} names it"


def cut(folder: Path) -> str:
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-8])
    return rf"{SECOND} is damaged"


def misshape(folder: Path) -> str:
    rewrite(folder, lambda tensors: tensors.update({TENSOR: tensors[TENSOR][:-1].clone()}), FIRST)
    edit(folder / INDEX, metadata={})
    return rf"tensor {TENSOR} has shape \(127, 64\)"


def miscount(folder: Path) -> str:
    edit(folder / INDEX, metadata={"total_size": 7})
    return rf"{INDEX} says total_size 7, the files hold 695936 bytes"


def empty(folder: Path) -> str:
    edit(folder / INDEX, weight_map={})
    return rf"{INDEX} holds no weight_map"


def beside_a_whole_file(folder: Path) -> str:
    save_file({"a": torch.ones(1)}, folder / "model.safetensors")
    return rf"model\.safetensors and {INDEX} name different weights"


@pytest.mark.parametrize(
    "spoil",
    [
        forget, invent, misplace, double, double_under_an_older_name, lose, cut, misshape, miscount, empty,
        beside_a_whole_file,
    ],
)  # fmt: skip
def test_shards_and_index_must_agree(folder: Path, spoil: Callable[[Path], str]) -> None:
    shard(folder)
    message = spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    "name",
    ["../m.safetensors", "/etc/m.safetensors", "sub/m.safetensors", "..", "pytorch_model.bin", "", 7, ["a"], None],
)
def test_an_index_names_safetensors_of_this_folder_only(folder: Path, name: Any) -> None:
    shard(folder)
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    edit(folder / INDEX, weight_map=weight_map | {TENSOR: name})
    with pytest.raises(CheckpointError, match=rf"{INDEX} puts {TENSOR} into .*no safetensors file of this folder"):
        load_model(folder)


def test_what_the_index_does_not_name_is_told(source: tuple[Any, Path], folder: Path) -> None:
    shard(folder)
    save_file({"a": torch.ones(1)}, folder / "model-00003-of-00003.safetensors")
    loaded = load_model(folder)
    assert_same(loaded.model, source[0])
    assert loaded.notices == (f"model-00003-of-00003.safetensors is not named by {INDEX} and is not used",)
