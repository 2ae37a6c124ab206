"""Adapters: silent at first, merged without a change, in the names of the plain model."""

from typing import Any

import torch

from echo_model.training.lora import add_adapters, merge_adapters
from echo_model.training.text_stages import rad_loss
from unit.echo_model.small_training import BLOCK, small_data, small_model


def loss(model: Any) -> torch.Tensor:
    return rad_loss(model, small_data(), [0, 1], BLOCK, torch.Generator().manual_seed(1))[0]


def test_merged_adapters_are_the_trained_model() -> None:
    model = small_model(1)
    names = set(model.state_dict())
    base = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        before = loss(model)
    handle = add_adapters(model, 4, seed=0)
    with torch.no_grad():
        assert torch.equal(loss(model), before)
    learning = [p for p in model.parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in learning) < 0.2 * sum(v.numel() for v in base.values())
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    for _ in range(3):
        loss(model).backward()  # type: ignore[no-untyped-call]  # torch publishes no type for it
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        trained = loss(model)
        merged = merge_adapters(handle)
        assert torch.allclose(loss(merged), trained, atol=1e-4)
    assert float(trained) < float(before)
    assert set(merged.state_dict()) == names
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, base[name])}
    assert changed
    assert all("language_model.layers" in name and name.endswith("proj.weight") for name in changed)
