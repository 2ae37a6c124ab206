"""What the machine could do at best: bytes a pass must read, products it must compute, and how fast both can go.

    floor = max(bytes / memory bandwidth, operations / arithmetic peak)

Bandwidth and peak are measured in the same run, by a copy of a large tensor and a large matrix product.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

from echo_model.bench_loops import now

NOMINAL: Final = {"H100": (3.0e12, 989e12), "H200": (4.8e12, 989e12), "A100": (1.9e12, 312e12)}
"""Bytes/s that a stream reaches at best and dense bfloat16 operations/s, by the GPU's name."""
_TRIES = 5


@dataclass(frozen=True)
class Work:
    """Bytes that one pass has to read at least, and operations (a multiplication and an addition are two)."""

    bytes: float
    operations: float


@dataclass(frozen=True)
class Limits:
    """Bytes/s and operations/s, measured, and as its maker says where the device is known."""

    bandwidth: float
    peak: float
    nominal: tuple[float, float] | None = None

    def floor(self, work: Work) -> dict[str, Any]:
        """Shortest time of the work in ms, what bounds it, and the same for the nominal figures."""
        memory, compute = work.bytes / self.bandwidth, work.operations / self.peak
        nominal = None
        if self.nominal is not None:
            nominal = 1e3 * max(work.bytes / self.nominal[0], work.operations / self.nominal[1])
        bound = "memory" if memory > compute else "compute"
        return {"ms": 1e3 * max(memory, compute), "bound": bound, "nominal_ms": nominal}

    def to_json(self) -> dict[str, Any]:
        """In GB/s and TFLOP/s."""
        nominal = None
        if self.nominal is not None:
            nominal = {"bandwidth_gb_s": self.nominal[0] / 1e9, "peak_tflop_s": self.nominal[1] / 1e12}
        return {"bandwidth_gb_s": self.bandwidth / 1e9, "peak_tflop_s": self.peak / 1e12, "nominal": nominal}


def measure(device: torch.device, dtype: torch.dtype) -> Limits:
    """Measure the device: about a tenth of a second."""
    cuda = device.type == "cuda"
    size, edge = (2 << 30, 8192) if cuda else (64 << 20, 768)
    source = torch.zeros(size // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    copied = _best(lambda: target.copy_(source), device)
    left = torch.randn(edge, edge, dtype=dtype, device=device)
    product = torch.empty_like(left)
    multiplied = _best(lambda: torch.mm(left, left, out=product), device)
    name = torch.cuda.get_device_name(device) if cuda else ""
    nominal = next((figures for known, figures in NOMINAL.items() if known in name), None)
    return Limits(2 * size / copied, 2 * edge**3 / multiplied, nominal)


def _best(work: Callable[[], Any], device: torch.device) -> float:
    work()
    times = []
    for _ in range(_TRIES):
        begun = now(device)
        work()
        times.append(now(device) - begun)
    return max(min(times), time.get_clock_info("perf_counter").resolution)


def decode_work(model: Any, count: int, window: int, shown: int, context: int) -> Work:
    """A decoding pass: `count` sequences of `window` rows that see `context` tokens; `shown` rows reach the head.

    Read once: the layers' and the head's weights, and the keys and values of every sequence.
    """
    language = model.model.language_model
    text, item = language.config, model.lm_head.weight.element_size()
    layers, head = _size(language.layers), model.lm_head.weight.numel()
    width = text.hidden_size // text.num_attention_heads
    cached = 2 * text.num_hidden_layers * text.num_key_value_heads * width
    attention = 4 * text.num_hidden_layers * text.hidden_size * context
    operations = count * (window * (2 * layers + attention) + shown * 2 * head)
    return Work(item * (layers + head + count * context * cached), operations)


def prefill_work(model: Any, tokens: int) -> Work:
    """A prompt's pass. No row needs the head; on average a row sees half of the prompt."""
    return decode_work(model, 1, tokens, 0, tokens // 2)


def vision_work(model: Any, grid: tuple[int, int]) -> Work:
    """The vision tower on one picture of `grid` patches."""
    visual = model.model.visual
    config, patches = visual.config, grid[0] * grid[1]
    blocks, merger, opening = _size(visual.blocks), _size(visual.merger), _size(visual.patch_embed)
    near = (config.window_size // config.patch_size) ** 2
    whole = len(config.fullatt_block_indexes)
    seen = whole * patches + (config.depth - whole) * min(near, patches)
    operations = 2 * patches * (blocks + opening + merger / config.spatial_merge_size**2)
    operations += 4 * patches * config.hidden_size * seen
    return Work((blocks + merger + opening) * model.lm_head.weight.element_size(), operations)


def _size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
