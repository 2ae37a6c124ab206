"""Predicted memory against the allocator of a CUDA device. Run where one is: pytest tests/gpu."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from echo_model.bench_shapes import SHAPES, random_model
from echo_model.memory import Load, predict
from echo_model.slots import Prompt, SlotDecoder
from echo_model.text_model import TextModel
from echo_model.unmasking import DecodingRules
from echo_model.vision_tower import vision_features

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device here; run pytest tests/gpu on one"
)


def taken(work: Callable[[], Any]) -> int:
    """Bytes that the allocator gave out at the peak, over what was out before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = work()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def test_the_3b_shape_takes_what_was_predicted() -> None:
    shape, kind, device = SHAPES["3b"], torch.bfloat16, torch.device("cuda")
    model = random_model(shape, device, kind)
    weights = {id(parameter): parameter for parameter in model.parameters()}.values()
    load = Load(
        slots=8,
        prompt_tokens=shape.prompt_tokens,
        gen_length=192,
        block_length=8,
        grids=(shape.grid,),
        item=kind.itemsize,
    )
    memory = predict(model.config, sum(parameter.numel() for parameter in weights), load)
    assert sum(parameter.nbytes for parameter in weights) == memory.weights
    grid = torch.tensor([[1, *shape.grid]])
    patches = shape.grid[0] * shape.grid[1]

    @torch.inference_mode()
    def tower() -> torch.Tensor:
        pixels = torch.zeros(patches, 1176, device=device)
        return vision_features(model.model.visual, pixels.to(kind), grid)

    tower()  # the libraries take their work areas once
    assert taken(tower) == pytest.approx(memory.vision_tower, rel=0.05)

    text = TextModel(model, packed=True)
    made: list[SlotDecoder] = []
    rules = DecodingRules(mask_token_id=5, eos_token_ids=(0,), block_length=8, gen_length=load.gen_length)

    def slots() -> None:
        made.append(SlotDecoder(text, slots=8, capacity=load.capacity, block_length=8, mask_token_id=5))

    assert taken(slots) == pytest.approx(memory.key_value + memory.slot_state, rel=0.05)
    (decoder,) = made

    def prefill(slot: int) -> None:
        while not decoder.prefill(slot, 512):
            pass

    def admit(slot: int) -> None:
        length, hidden = load.prompt_tokens, model.config.text_config.hidden_size
        embeds = torch.randn(1, length, hidden, device=device, dtype=kind)
        decoder.admit(slot, Prompt(embeds, torch.arange(length, device=device).expand(3, 1, -1), 0), rules)

    admit(0)
    prefill(0)
    admit(1)
    assert taken(lambda: prefill(1)) == pytest.approx(memory.prefill, rel=0.05)
    for slot in range(2, 8):
        admit(slot)
        prefill(slot)
    decoder.step()
    assert taken(decoder.step) == pytest.approx(memory.decode, rel=0.05)
