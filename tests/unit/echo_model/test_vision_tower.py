"""The tower with batched windows against the stock tower, which attends window by window."""

from __future__ import annotations

import pytest
import torch

from echo_model.vision_tower import vision_features
from unit.echo_model.tiny_checkpoint import tiny_model

# Whole windows are 8 x 8 patches: grids with ragged windows on one side, on both, smaller than one, several frames.
GRIDS = ([[1, 8, 8]], [[1, 20, 14], [1, 8, 8]], [[2, 4, 18], [1, 2, 2], [1, 16, 24]])


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("whole", [[], [1], [0, 1]])
def test_features_equal_those_of_the_stock_tower(grids: list[list[int]], whole: list[int]) -> None:
    visual = tiny_model(1, torch.float64).model.visual
    visual.fullatt_block_indexes = visual.config.fullatt_block_indexes = whole
    grid = torch.tensor(grids)
    draw = torch.Generator().manual_seed(4)
    pixels = torch.randn(int(grid.prod(-1).sum()), 3 * 2 * 14 * 14, dtype=torch.float64, generator=draw)
    with torch.inference_mode():
        wanted = visual(pixels, grid_thw=grid).pooler_output
        got = vision_features(visual, pixels, grid)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    assert not torch.allclose(got, got.roll(1, 0)), "the places differ, or the comparison would mean little"
