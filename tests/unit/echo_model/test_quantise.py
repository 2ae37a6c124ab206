"""8-bit weights: near the original where torchao is installed, a plain refusal where it is not."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest
import torch

from echo_model.bench_loops import BlockDiffusion
from echo_model.bench_rows import rules, subject
from echo_model.errors import SettingsError
from echo_model.quantise import quantised
from echo_model.text_model import TextModel
from unit.echo_model.tiny_checkpoint import tiny_model


def test_without_torchao_the_refusal_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(SettingsError, match="torchao"):
        quantised(TextModel(tiny_model(0), packed=True))


def test_layers_that_are_not_packed_are_refused() -> None:
    with pytest.raises(SettingsError, match="packed"):
        quantised(TextModel(tiny_model(0)))


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is an optional extra")
def test_the_demo_model_writes_nearly_the_same_on_8_bit_weights() -> None:
    what = subject("demo", torch.device("cpu"), torch.float32, tokens=64)
    text = TextModel(what.model, packed=True)
    before = BlockDiffusion(text, what.prompt, rules(what, 8)).decode().token_ids
    small = quantised(text, free=True)
    after = BlockDiffusion(small, what.prompt, rules(what, 8)).decode().token_ids
    assert sum(one == other for one, other in zip(before, after, strict=True)) >= 0.9 * len(before)
    assert what.model.model.language_model.layers[0].mlp.up_proj.weight is None
