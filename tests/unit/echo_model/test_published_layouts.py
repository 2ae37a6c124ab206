"""Checkpoints as others write them: transformers in both layouts, flat configurations, block-diffusion models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from echo_model.convert import convert
from echo_model.errors import CheckpointError
from echo_model.inspection import inspect_checkpoint
from echo_model.model import load_model
from echo_model.weights import canonical_key
from unit.echo_model.checkpoint_edits import assert_same, edit
from unit.echo_model.tiny_checkpoint import IM_END, MASK, tiny_model, tiny_tokenizer, write_checkpoint


def saved_by_transformers(folder: Path, model: Any, **options: Any) -> Path:
    """What `save_pretrained` writes, and the tokenizer and processor files that belong beside it."""
    write_checkpoint(folder, model)
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        (folder / name).unlink()
    model.save_pretrained(folder, **options)
    return folder


@pytest.mark.parametrize("shards", ["1GB", "60KB"])
@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_what_transformers_saves_loads_bit_for_bit(tmp_path: Path, tied: bool, newer: bool, shards: str) -> None:
    model = tiny_model(7, tied=tied)
    folder = saved_by_transformers(tmp_path / "stock", model, max_shard_size=shards, save_original_format=not newer)
    assert (folder / "model.safetensors.index.json").is_file() == (shards == "60KB")
    assert inspect_checkpoint(folder)["layout"] == ("newer" if newer else "older")
    loaded = load_model(folder)
    assert_same(loaded.model, model)
    assert loaded.mask_token_id == MASK
    assert loaded.eos_token_ids == (IM_END,)


def older(name: str) -> str:
    """Tower and language model side by side at the top."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def side(name: str) -> str:
    """The language model as a whole model of its own."""
    name = name.replace("model.language_model.", "language_model.model.").replace("model.visual.", "visual.")
    return name.replace("lm_head.", "language_model.lm_head.")


@pytest.mark.parametrize(("rename", "layout"), [(str, "newer"), (older, "older"), (side, "side by side")])
@pytest.mark.parametrize("tied", [True, False])
def test_every_naming_is_read(tmp_path: Path, rename: Callable[[str], str], layout: str, tied: bool) -> None:
    model = tiny_model(3, tied=tied)
    folder = write_checkpoint(tmp_path / "a", model)
    tensors = load_file(folder / "model.safetensors")
    assert all(canonical_key(rename(name)) == name for name in tensors)
    save_file({rename(name): value for name, value in tensors.items()}, folder / "model.safetensors")
    assert inspect_checkpoint(folder)["layout"] == layout
    assert_same(load_model(folder).model, model)


def flat(folder: Path, *, nested_too: bool = False) -> None:
    """A configuration as the Qwen2.5-VL checkpoints carry it: the language model's settings at the top.

    With `nested_too`, as later 4.x releases of transformers wrote it: once more inside, the head's tying only there.
    """
    nested = json.loads((folder / "config.json").read_text())
    text, vision = nested["text_config"], nested["vision_config"]
    rope = text["rope_parameters"]
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    seen = ("depth", "hidden_size", "num_heads", "intermediate_size", "out_hidden_size", "fullatt_block_indexes")
    values = {name: text[name] for name in (*kept, "intermediate_size", "rms_norm_eps", "hidden_act")} | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": IM_END,
        "image_token_id": nested["image_token_id"],
        "video_token_id": nested["video_token_id"],
        "vision_start_token_id": 2,
        "vision_end_token_id": 3,
        "vision_token_id": 3,
        "max_position_embeddings": 128_000,
        "max_window_layers": text["num_hidden_layers"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "rope_theta": rope["rope_theta"],
        "sliding_window": 32_768,
        "use_sliding_window": False,
        "tie_word_embeddings": nested["tie_word_embeddings"],
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "vision_config": {name: vision[name] for name in seen}
        | {"hidden_act": "silu", "in_chans": 3, "spatial_patch_size": 14, "patch_size": 14, "window_size": 112},
    }
    if nested_too:
        inner = ("vision_config", "architectures", "image_token_id", "video_token_id", "torch_dtype", "model_type")
        values["vision_config"] |= {"model_type": "qwen2_5_vl", "initializer_range": 0.02, "torch_dtype": "bfloat16"}
        values["text_config"] = {name: value for name, value in values.items() if name not in inner} | {
            "model_type": "qwen2_5_vl_text",
            "layer_types": ["full_attention"] * text["num_hidden_layers"],
            "rope_scaling": {"mrope_section": rope["mrope_section"], "rope_type": "default", "type": "default"},
            "sliding_window": None,
        }
        del values["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("nested_too", [False, True])
def test_configurations_of_older_releases_give_the_same_model(tmp_path: Path, tied: bool, nested_too: bool) -> None:
    model = tiny_model(3, tied=tied)
    folder = saved_by_transformers(tmp_path / "a", model)
    flat(folder, nested_too=nested_too)
    assert_same(load_model(folder).model, model)
    convert(folder, tmp_path / "b")
    assert_same(load_model(tmp_path / "b").model, model)


def test_a_block_diffusion_checkpoint_that_brings_its_own_code(tmp_path: Path) -> None:
    """As such models are published: stock tensors, remote code and another attention kernel named in the config."""
    model = tiny_model(3, tied=False)
    folder = saved_by_transformers(tmp_path / "a", model, max_shard_size="100KB")
    flat(folder)
    code = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    edit(folder / "config.json", auto_map=code, mask_token_id=MASK, attn_implementation="flash_attention_2")
    edit(folder / "config.json", architectures=["OwnModel"], _attn_implementation="flash_attention_2")
    (folder / "modeling_own.py").write_text("raise SystemExit('this must never run')")
    edit(folder / "generation_config.json", eos_token_id=[IM_END, 7], do_sample=True, temperature=0.1)
    (folder / "tokenizer.json").write_text(tiny_tokenizer().to_str().replace("<|MASK|>", "<|other|>"))
    found = inspect_checkpoint(folder)
    assert len(found["notices"]) == 2
    assert "'OwnModel' is read as Qwen2_5_VLForConditionalGeneration" in found["notices"][0]
    assert "config.json names code of the checkpoint (auto_map)" in found["notices"][1]
    loaded = load_model(folder)
    assert_same(loaded.model, model)
    assert loaded.mask_token_id == MASK
    assert loaded.eos_token_ids == (IM_END, 7)
    edit(folder / "config.json", model_type="own", architectures=["Qwen2_5_VLForConditionalGeneration"])
    assert "model_type 'own' is read as 'qwen2_5_vl'" in load_model(folder).notices[0]
    edit(folder / "config.json", architectures=["OwnModel"])
    with pytest.raises(CheckpointError, match="model_type is 'own'"):
        load_model(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("inner", [..., True, False])
def test_whether_the_head_is_tied_is_read_off_the_weights_when_not_said(tmp_path: Path, tied: bool, inner: Any) -> None:
    model = tiny_model(3, tied=tied)
    folder = write_checkpoint(tmp_path / "a", model)
    text = json.loads((folder / "config.json").read_text())["text_config"] | {"tie_word_embeddings": inner}
    edit(
        folder / "config.json",
        tie_word_embeddings=...,
        text_config={name: value for name, value in text.items() if value is not ...},
    )
    loaded = load_model(folder)
    assert_same(loaded.model, model)
    assert inspect_checkpoint(folder)["language_model"]["tied_embeddings"] is tied


def test_a_head_that_is_said_to_be_there_and_is_not(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "a", tiny_model(3, tied=True))
    edit(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing.*tie_word_embeddings"):
        load_model(folder)


def test_missing_processor_files_are_explained_and_newer_ones_read(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "a", tiny_model(3))
    wanted = load_model(folder).image_config
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json is missing.*copy it from the Qwen2\.5-VL"):
        load_model(folder)
    edit(folder / "processor_config.json", processor_class="Qwen2_5_VLProcessor", image_processor=processor)
    assert load_model(folder).image_config == wanted
    edit(folder / "processor_config.json", image_processor=processor | {"patch_size": "x"})
    with pytest.raises(CheckpointError, match=r"processor_config\.json has a value that cannot be used"):
        load_model(folder)


def test_where_the_mask_token_comes_from(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "a", tiny_model(3))
    assert load_model(folder).mask_token_id == MASK
    edit(folder / "special_tokens_map.json", mask_token="<|vision_start|>")
    assert load_model(folder).mask_token_id == 2
    edit(folder / "tokenizer_config.json", mask_token={"content": "<|vision_end|>"})
    assert load_model(folder).mask_token_id == 3
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit(folder / "config.json", text_config=text | {"mask_token_id": 6})
    assert load_model(folder).mask_token_id == 6
    edit(folder / "config.json", mask_token_id=7)
    assert load_model(folder).mask_token_id == 7
    edit(folder / "generation_config.json", mask_token_id=8)
    assert load_model(folder).mask_token_id == 8
    for wrong in (3000, -1, "8", True, 2.0):
        edit(folder / "generation_config.json", mask_token_id=wrong)
        with pytest.raises(CheckpointError, match=f"mask_token_id {wrong!r} is no token"):
            load_model(folder)
    edit(folder / "generation_config.json", mask_token_id=IM_END)
    with pytest.raises(CheckpointError, match="an end token as well"):
        load_model(folder)


def test_a_mask_token_that_nothing_names_or_nobody_knows(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "a", tiny_model(3))
    raw = tiny_tokenizer().to_str().replace("<|MASK|>", "<|other|>")
    Tokenizer.from_str(raw).save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="no mask token"):
        load_model(folder)
    edit(folder / "tokenizer_config.json", mask_token="<mask>")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json names the mask token '<mask>'"):
        load_model(folder)


def test_where_the_end_tokens_come_from(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "a", tiny_model(3))
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit(folder / "generation_config.json", eos_token_id=...)
    edit(folder / "config.json", text_config=text | {"eos_token_id": 9})
    assert load_model(folder).eos_token_ids == (9,)
    edit(folder / "config.json", eos_token_id=[8, 9])
    assert load_model(folder).eos_token_ids == (8, 9)
    edit(folder / "generation_config.json", eos_token_id=7)
    assert load_model(folder).eos_token_ids == (7,)
    edit(folder / "generation_config.json", eos_token_id=[7, 3000])
    with pytest.raises(CheckpointError, match="eos_token_id 3000 is no token"):
        load_model(folder)
    edit(folder / "generation_config.json", eos_token_id=...)
    edit(folder / "config.json", eos_token_id=..., text_config=text | {"eos_token_id": None})
    assert load_model(folder).eos_token_ids == (IM_END,)
    raw = tiny_tokenizer().to_str().replace("<|im_end|>", "<|other|>")
    (folder / "tokenizer.json").write_text(raw)
    with pytest.raises(CheckpointError, match="no end token"):
        load_model(folder)


def test_the_type_of_most_weights_is_the_checkpoints_own(tmp_path: Path) -> None:
    from echo_model.weights import find_weights

    folder = write_checkpoint(tmp_path / "a", tiny_model(3, torch.bfloat16))
    assert find_weights(folder).main_dtype == torch.bfloat16
