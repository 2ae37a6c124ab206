"""The memory that `inspect` predicts against what the allocator gives out, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from echo_model import ReportEngine, demo_checkpoint_path
from echo_model.inspection import inspect_checkpoint
from echo_model.memory import Load, predict, vision_tower_bytes
from echo_model.slots import Prompt, SlotDecoder
from echo_model.text_model import TextModel
from echo_model.unmasking import DecodingRules
from echo_model.vision_tower import vision_features
from unit.echo_model.live_memory import peak_bytes

ALLOWED = 0.05


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Some kernels take a work area for every thread; what is predicted is the tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def without_onednn() -> Iterator[None]:
    """On processors that multiply bfloat16, oneDNN lays weights out anew for each product."""
    flags = torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)
    yield
    torch.backends.mkldnn.set_flags(_enabled=flags[0], _fp32_precision=None)


def model(dtype: torch.dtype, *, hidden: int, inner: int, heads: int, kv: int, words: int, tower: int) -> Any:
    """Random weights of a shape whose activations are large enough to be measured and quick to compute."""
    half = hidden // heads // 2
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": words,
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": 2,
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "rope_parameters": rope,
            "bos_token_id": None,
            "eos_token_id": 0,
        },
        vision_config={
            "depth": 2,
            "hidden_size": tower,
            "num_heads": 2,
            "intermediate_size": 3 * tower,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [1],
        },
        image_token_id=1,
        video_token_id=2,
        vision_start_token_id=3,
        vision_end_token_id=0,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    made: Any = Qwen2_5_VLForConditionalGeneration(config)
    return made.to(dtype).eval().requires_grad_(False)


SHAPES = [
    (torch.float32, {"hidden": 128, "inner": 384, "heads": 4, "kv": 2, "words": 512, "tower": 64}),
    (torch.bfloat16, {"hidden": 112, "inner": 256, "heads": 7, "kv": 1, "words": 4096, "tower": 128}),
    (torch.float64, {"hidden": 64, "inner": 256, "heads": 2, "kv": 2, "words": 256, "tower": 160}),
]

WHOLE, CUT = ((40, 48),), ((26, 22), (26, 22))  # pictures of whole attention windows, and with cut ones at the edges


def near(measured: int, predicted: int) -> None:
    assert measured == pytest.approx(predicted, rel=ALLOWED)


@pytest.mark.usefixtures("without_onednn")
@pytest.mark.parametrize(
    ("dtype", "shape", "block"),
    [(*case, block) for case, block in zip(SHAPES, (8, 16, 4), strict=True)],
    ids=["float32", "bfloat16", "float64"],
)
def test_slots_take_what_was_predicted(dtype: torch.dtype, shape: dict[str, int], block: int) -> None:
    made = model(dtype, **shape)
    config = made.config
    load = Load(slots=6, prompt_tokens=700, gen_length=61, block_length=block, grids=((16, 16),), item=dtype.itemsize)
    text = TextModel(made, packed=True)
    rules = DecodingRules(mask_token_id=5, eos_token_ids=(0,), block_length=block, gen_length=load.gen_length)
    memory = predict(config, sum(parameter.numel() for parameter in made.parameters()), load)
    decoders: list[SlotDecoder] = []

    def slots() -> SlotDecoder:
        return SlotDecoder(text, slots=load.slots, capacity=load.capacity, block_length=block, mask_token_id=5)

    def prompt() -> Prompt:
        length, size = load.prompt_tokens, config.text_config.hidden_size
        embeds = torch.randn(1, length, size, dtype=dtype)
        return Prompt(embeds, torch.arange(length).expand(3, 1, -1), 0)

    near(peak_bytes(lambda: decoders.append(slots())), memory.key_value + memory.slot_state)
    (decoder,) = decoders
    assert decoder.cache.memory.nbytes == memory.key_value
    assert memory.key_value == load.slots * memory.key_value_per_slot
    decoder.admit(0, prompt(), rules)

    def prefill() -> None:
        while not decoder.prefill(0, 512):
            pass

    near(peak_bytes(prefill), memory.prefill)
    for slot in range(1, load.slots):
        decoder.admit(slot, prompt(), rules)
        decoder.prefill(slot)
    decoder.step()
    near(peak_bytes(decoder.step), memory.decode)


@pytest.mark.parametrize(
    ("dtype", "shape", "grids"),
    [(*SHAPES[0], WHOLE), (*SHAPES[0], CUT), (*SHAPES[1], WHOLE), (*SHAPES[2], CUT)],
    ids=["float32-whole", "float32-cut", "bfloat16-whole", "float64-cut"],
)
def test_the_tower_takes_what_was_predicted(
    dtype: torch.dtype, shape: dict[str, int], grids: tuple[tuple[int, int], ...]
) -> None:
    made = model(dtype, **shape)
    patches = sum(rows * columns for rows, columns in grids)
    load = Load(slots=1, prompt_tokens=patches, gen_length=64, block_length=8, grids=grids, item=dtype.itemsize)
    grid = torch.tensor([[1, *grid] for grid in grids])

    def tower() -> torch.Tensor:
        pixels = torch.zeros(patches, 1176)
        return vision_features(made.model.visual, pixels.to(dtype), grid)

    with torch.inference_mode():
        tower()
        near(peak_bytes(tower), vision_tower_bytes(made.config.vision_config, load))


def test_the_engine_makes_its_slots_as_predicted() -> None:
    predicted = inspect_checkpoint(demo_checkpoint_path(), dtype="float32", slots=3)["memory"]
    with ReportEngine.from_pretrained("demo", max_slots=3) as engine:
        report = engine.generate(np.zeros((64, 64), dtype=np.uint8))
        assert engine._decoder is not None
        assert engine._decoder.cache.memory.nbytes == predicted["key_value"]
        weights = {id(parameter): parameter.nbytes for parameter in engine.loaded.model.parameters()}
    assert report.stats.prompt_tokens == predicted["prompt_tokens"]
    assert sum(weights.values()) == predicted["weights"]
