"""The benchmark and its loops on a CUDA device. Run where one is: pytest tests/gpu."""

from __future__ import annotations

import pytest
import torch

from echo_model.bench import bench
from echo_model.bench_loops import BlockDiffusion, OwnAutoregressive, autoregressive, plain_loop
from echo_model.bench_rows import rules, subject
from echo_model.text_model import TextModel

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device here; run pytest tests/gpu on one"
)
CUDA = torch.device("cuda")


def test_recorded_passes_decode_what_plain_ones_decode() -> None:
    """Four rounds: the later ones replay what the earlier ones recorded."""
    what = subject("demo", CUDA, torch.float32, tokens=64)
    text = TextModel(what.model, packed=True)
    loop = BlockDiffusion(text, what.prompt, rules(what, 8), 3)
    own = OwnAutoregressive(text, what.prompt, 64, what.mask_token_id)
    blocks = [sorted(loop.decode().token_ids) for _ in range(4)]
    singles = [own.decode().token_ids for _ in range(4)]
    assert all(other == blocks[0] for other in blocks)
    assert all(other == singles[0] for other in singles)
    assert blocks[0] == sorted(3 * plain_loop(what.model, what.prompt, rules(what, 8)).token_ids)
    assert singles[0] == autoregressive(what.model, what.prompt, 64, what.mask_token_id).token_ids


def test_every_row_runs_on_the_device() -> None:
    result = bench("tiny", "cuda", repeats=1, tokens=32, blocks=(8,), batches=(1, 8))
    assert result["skipped"] == []
    assert all(row["memory_bytes"] > 0 for row in result["rows"])
    assert all(ratio is not None for ratio in result["ratios"].values())
