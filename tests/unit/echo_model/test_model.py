"""Loading a sound checkpoint: values, types, identity, and the memory that it takes."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from echo_model.cli import main
from echo_model.errors import CheckpointError, SettingsError
from echo_model.images import ImageConfig
from echo_model.inspection import inspect_checkpoint, largest_grid
from echo_model.model import load_model
from echo_model.weights import find_weights
from unit.echo_model.checkpoint_edits import assert_same, edit, rewrite, shard
from unit.echo_model.tiny_checkpoint import MASK, tiny_model, write_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = tiny_model(3)
    return model, write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", model)


@pytest.fixture
def folder(source: tuple[Any, Path], tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(source[1], tmp_path / "copy")
    return tmp_path / "copy"


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
    assert loaded.notices == ()


def test_shards_load_as_one(source: tuple[Any, Path], folder: Path) -> None:
    shard(folder, 3)
    assert_same(load_model(folder).model, source[0])


def test_dtype_and_device(source: tuple[Any, Path], folder: Path) -> None:
    assert load_model(folder).model.lm_head.weight.dtype == torch.float32
    small = load_model(folder, dtype="bfloat16").model
    wanted = source[0].state_dict()
    assert all(torch.equal(value, wanted[name].bfloat16()) for name, value in small.state_dict().items())
    assert {buffer.dtype for buffer in small.buffers()} == {torch.float32}, "rotary tables keep their precision"
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


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        load_model(tmp_path / "absent")


def test_inspection_counts_without_loading(source: tuple[Any, Path], folder: Path) -> None:
    found = inspect_checkpoint(folder)
    assert found["parameters"] == sum(parameter.numel() for parameter in source[0].parameters())
    assert found["dtypes"] == ["F32"]
    assert found["revision"] == load_model(folder).revision
    assert found["language_model"]["key_value_heads"] == 2
    assert found["architecture"] == "Qwen2_5_VLForConditionalGeneration"
    assert found["layout"] == "newer"
    assert found["notices"] == []
    rewrite(folder, lambda tensors: tensors.pop("model.language_model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"norm\.weight is missing"):
        inspect_checkpoint(folder)


def test_inspection_predicts_memory(source: tuple[Any, Path], folder: Path) -> None:
    found = inspect_checkpoint(folder, dtype="bfloat16", slots=3, prompt_tokens=100, gen_length=20)["memory"]
    assert found["weights"] == 2 * sum(parameter.numel() for parameter in source[0].parameters())
    # Two layers, 128 tokens and two blocks of four to spare, keys and values, two heads of 16, two bytes.
    assert found["key_value"] == 3 * found["key_value_per_slot"] == 3 * 2 * (128 + 8) * 2 * 2 * 16 * 2
    held = sum(found[name] for name in ("weights", "key_value", "slot_state", "prompts"))
    assert found["total"] == held + max(found[name] for name in ("vision_tower", "prefill", "decode"))
    own = inspect_checkpoint(folder)["memory"]
    assert (own["dtype"], own["gen_length"], own["block_length"], own["patches"]) == ("float32", 32, 4, 16)
    assert own["prompt_tokens"] > 4
    assert inspect_checkpoint(folder, images=2)["memory"]["prompt_tokens"] == own["prompt_tokens"] + 6
    with pytest.raises(SettingsError, match="int8"):
        inspect_checkpoint(folder, dtype="int8")


def test_the_largest_picture_fits_the_limit() -> None:
    assert largest_grid(ImageConfig(image_size=56)) == (4, 4)
    rows, columns = largest_grid(ImageConfig())
    assert (rows, columns) == (106, 108)
    assert rows * columns * 14**2 <= ImageConfig().max_pixels


def test_what_inspect_prints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert main(["inspect", str(folder), "--slots", "2", "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr().out
    assert "layout: newer" in printed
    assert "memory predicted for bfloat16, 2 slots" in printed
    assert "note: pytorch_model.bin is a pickle" in printed
    assert main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notices"]


def test_a_working_copy_never_reaches_the_file(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    loaded = load_model(folder)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def peak_of(work: Any) -> int:
    """Bytes that the resident set grew by at its largest while `work` ran."""

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))

    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        pytest.skip(f"this kernel does not reset the peak of the resident set: {error}")
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


@pytest.mark.parametrize(
    ("dtype", "limit"),
    [(torch.float32, 1.15), (torch.bfloat16, 0.65), (torch.float64, 2.15)],
)
def test_a_sharded_checkpoint_is_never_held_twice(tmp_path: Path, dtype: torch.dtype, limit: float) -> None:
    """Peak of loading and touching float32 weights: mapped as they are, or their conversion and one tensor more."""
    save_file(
        {f"model.language_model.layers.{n:02}.weight": torch.full((1024, 1024), float(n)) for n in range(24)},
        tmp_path / "model.safetensors",
    )
    shard(tmp_path, 3)
    weights = find_weights(tmp_path)
    size = sum(tensor.nbytes for tensor in weights.tensors.values())
    assert size == 24 << 22
    kept: dict[str, torch.Tensor] = {}

    def load() -> None:
        kept.update(weights.read(dtype, torch.device("cpu")))
        assert all(bool((tensor == n).all()) for n, tensor in enumerate(kept.values()))

    assert peak_of(load) < limit * size


def test_a_replaced_tensor_does_not_stay_resident(tmp_path: Path) -> None:
    """What is packed into other matrices after loading is given back, though its neighbours stay mapped."""
    names = [f"model.language_model.layers.{n:02}.weight" for n in range(24)]
    save_file({name: torch.full((1024, 1024), 1.0) for name in names}, tmp_path / "model.safetensors")
    weights = find_weights(tmp_path)
    kept: dict[str, torch.Tensor] = {}

    def load_and_pack() -> None:
        kept.update(weights.read(torch.float32, torch.device("cpu")))
        for name in names[:-1]:
            kept[name] = torch.cat([kept[name], kept[name][:0]])

    assert peak_of(load_and_pack) < 1.2 * (24 << 22)


def test_values_at_odd_places_are_read(tmp_path: Path) -> None:
    """The format lets values start at any byte; the usual writers do not."""
    values = torch.arange(6, dtype=torch.float32)
    header = {
        "a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]},
        "b": {"dtype": "F32", "shape": [2, 3], "data_offsets": [2, 26]},
        "c": {"dtype": "BF16", "shape": [0, 4], "data_offsets": [26, 26]},
    }
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + torch.ones(1).half().numpy().tobytes() + values.numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(content)
    tensors = find_weights(tmp_path).read(torch.float32, torch.device("cpu"))
    assert torch.equal(tensors["b"], values.view(2, 3))
    assert tensors["a"].item() == 1
    assert tensors["c"].shape == (0, 4)


def test_settings_of_the_checkpoint_come_with_it(folder: Path) -> None:
    edit(folder / "generation_config.json", block_length=16, model_id="own name")
    loaded = load_model(folder)
    assert loaded.generation_config["block_length"] == 16
    assert loaded.model_id == "own name"
