"""Weights of the language model's linear layers as 8-bit whole numbers, by torchao (extra `quantise`).

Weight-only: every output channel has a scale, products are computed in the model's own type. The embedding, the head,
the norms and the vision tower stay as they are. Meant for a GPU, where a decoding pass waits for the weights to arrive.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

from torch import nn

from echo_model.errors import SettingsError
from echo_model.text_model import TextModel


def quantised(text: TextModel, *, free: bool = False) -> TextModel:
    """The same model on 8-bit copies of its layers' weights.

    With `free`, the original weights of those layers are given back; the stock model cannot be run afterwards. `text`
    must be packed. Raises SettingsError when torchao is not installed.
    """
    whole = copy.copy(text)
    whole.layers = [_quantised(layer) for layer in text.layers]
    if free:
        for layer in text.layers:
            attention, mlp = layer.layer.self_attn, layer.layer.mlp
            projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
            for part in (*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
                part.weight = None
        text.layers = []
    return whole


def _quantised(layer: Any) -> Any:
    """A decoder layer of `TextModel` with 8-bit linear layers and the norms of the original."""
    if layer.qkv is None or layer.gate_up is None:
        raise SettingsError("only packed layers can be quantised")
    stock = layer.layer
    twin = copy.copy(layer)
    twin.qkv, twin.gate_up = _linear(layer.qkv), _linear(layer.gate_up)
    twin.layer = SimpleNamespace(
        input_layernorm=stock.input_layernorm,
        post_attention_layernorm=stock.post_attention_layernorm,
        self_attn=SimpleNamespace(o_proj=_linear(stock.self_attn.o_proj)),
        mlp=SimpleNamespace(down_proj=_linear(stock.mlp.down_proj), act_fn=stock.mlp.act_fn),
    )
    return twin


def _linear(original: nn.Linear) -> nn.Linear:
    """An 8-bit copy."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise SettingsError("8-bit weights need torchao (pip install 'echo-model[quantise]')") from None
    twin = nn.Linear(original.in_features, original.out_features, bias=original.bias is not None, device="meta")
    twin.weight = nn.Parameter(original.weight.detach(), requires_grad=False)
    twin.bias = original.bias
    holder = nn.Sequential(twin)
    quantize_(holder, Int8WeightOnlyConfig())
    small = holder[0]
    assert isinstance(small, nn.Linear)
    return small
