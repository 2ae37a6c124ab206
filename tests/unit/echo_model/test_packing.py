"""Packed rows: the mask by index against brute force, no leakage to the bit, the same loss as apart."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_model.training.packing import (
    PackedRow,
    attention_pairs,
    fill_rows,
    pack_rad,
    packed_rad_loss,
    packed_states,
)
from echo_model.training.rad import index_tokens, rad_mask
from unit.echo_model.small_training import BLOCK, small_data, small_model

lengths = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(blocks=lengths, block=st.integers(1, 5), copies=st.integers(1, 2))
def test_the_mask_by_index_is_the_brute_force_one(blocks: list[tuple[int, int]], block: int, copies: int) -> None:
    sizes = [(prefix * block, region * block) for prefix, region in blocks]
    dense = index_tokens(sizes, block, copies).dense()
    start = 0
    wanted = torch.zeros_like(dense)
    for prefix, region in sizes:
        end = start + prefix + region * (1 + copies)
        wanted[start:end, start:end] = rad_mask(prefix, region, block, copies)
        start = end
    assert torch.equal(dense, wanted)


def test_mask_mod_is_the_dense_mask() -> None:
    index = index_tokens([(8, 16), (0, 8)], 8, 2)
    rule, length = index.mask_mod(), len(index.sample)
    told = [[bool(rule(0, 0, torch.tensor(q), torch.tensor(k))) for k in range(0, length, 3)] for q in range(length)]
    assert torch.equal(torch.tensor(told), index.dense()[:, ::3])


def test_flex_attention_takes_the_rule() -> None:
    from torch.nn.attention.flex_attention import create_mask

    index = index_tokens([(8, 16), (8, 8)], 8, 1)
    length = len(index.sample)
    made = create_mask(index.mask_mod(), 1, 1, length, length, device="cpu")
    assert torch.equal(made[0, 0], index.dense())


def test_lengths_off_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples"):
        index_tokens([(8, 7)], 8, 1)


@given(sizes=st.lists(st.integers(1, 120), min_size=1, max_size=30))
def test_every_sample_is_packed_once_and_rows_hold_their_capacity(sizes: list[int]) -> None:
    rows = fill_rows(sizes, 100)
    assert sorted(place for row in rows for place in row) == list(range(len(sizes)))
    for row in rows:
        assert sum(sizes[place] for place in row) <= 100 or len(row) == 1


def packed(model: object, rows: list[int], seed: int = 0) -> PackedRow:
    return pack_rad(model, small_data(), rows, BLOCK, torch.Generator().manual_seed(seed))


def test_a_neighbour_in_the_row_changes_no_bit() -> None:
    model = small_model(1)
    row = packed(model, [0, 1, 2])
    second = row.index.sample == 1
    other = PackedRow(row.embeds.clone(), row.positions, row.index, row.masked, row.truth)
    other.embeds[0, second] = torch.randn(int(second.sum()), row.embeds.shape[2]) * 3
    with torch.no_grad():
        before, after = packed_states(model, row), packed_states(model, other)
    assert torch.equal(before[~second], after[~second])
    assert not torch.equal(before[second], after[second])


def test_a_packed_sample_reads_as_it_would_alone() -> None:
    model = small_model(1).double()
    row = packed(model, [0, 1])
    size = int((row.index.sample == 0).sum())
    alone = packed(model, [0])
    assert torch.equal(alone.truth, row.truth[:size])
    with torch.no_grad():
        assert torch.allclose(packed_states(model, row)[:size], packed_states(model, alone), atol=1e-10)


def test_the_packed_loss_is_the_loss_of_its_rows_apart() -> None:
    model, data = small_model(1), small_data()
    with torch.no_grad():
        together, _ = packed_rad_loss(model, data, [0, 1, 2, 3], BLOCK, torch.Generator().manual_seed(3), 100_000)
        apart, _ = packed_rad_loss(model, data, [0, 1, 2, 3], BLOCK, torch.Generator().manual_seed(3), 1)
    assert float(together) == pytest.approx(float(apart), abs=1e-5)


def test_rad_saves_the_published_share_of_attention() -> None:
    rad, whole = attention_pairs(prompt=2_870 + 60, response=180)
    assert whole / rad == pytest.approx(3.6, abs=0.1)
