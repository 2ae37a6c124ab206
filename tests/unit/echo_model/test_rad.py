"""RAD: mask, layout and noise against slow, obvious constructions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_model.training.rad import draw_noise, lay_out, rad_mask
from echo_model.training.text_stages import embed, hidden_states
from unit.echo_model.small_training import BLOCK, small_data, small_model


def obvious_mask(prefix: int, region: int, block: int, copies: int) -> torch.Tensor:
    """Rules of the layout, one pair of tokens at a time."""
    tokens: list[tuple[str, int, int]] = [("prefix", 0, at // block) for at in range(prefix)]
    tokens += [("clean", 0, (prefix + at) // block) for at in range(region)]
    for copy in range(copies):
        tokens += [("noisy", copy, (prefix + at) // block) for at in range(region)]
    mask = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for q, (q_kind, q_copy, q_block) in enumerate(tokens):
        for k, (k_kind, k_copy, k_block) in enumerate(tokens):
            if k_kind == "prefix" or (q_kind == "clean" and k_kind == "clean"):
                mask[q, k] = k_block <= q_block
            elif q_kind == "noisy" and k_kind == "clean":
                mask[q, k] = k_block < q_block
            elif q_kind == "noisy" and k_kind == "noisy":
                mask[q, k] = q_copy == k_copy and q_block == k_block
    return mask


@pytest.mark.parametrize(
    ("prefix", "region", "block", "copies"), [(8, 12, 4, 1), (0, 8, 4, 2), (16, 8, 8, 2), (6, 9, 3, 3)]
)
def test_mask_is_the_obvious_one(prefix: int, region: int, block: int, copies: int) -> None:
    assert torch.equal(rad_mask(prefix, region, block, copies), obvious_mask(prefix, region, block, copies))


@settings(max_examples=25, deadline=None)
@given(prefix=st.integers(0, 3), region=st.integers(1, 4), block=st.integers(1, 5), copies=st.integers(1, 2))
def test_mask_is_the_obvious_one_at_any_length(prefix: int, region: int, block: int, copies: int) -> None:
    made = rad_mask(prefix * block, region * block, block, copies)
    assert torch.equal(made, obvious_mask(prefix * block, region * block, block, copies))


def test_nobody_is_blind_and_no_clean_token_sees_noise() -> None:
    mask = rad_mask(8, 16, 8, 2)
    assert mask.any(1).all()
    assert not mask[:24, 24:].any()


@pytest.mark.parametrize(("prefix", "region"), [(7, 8), (8, 7)])
def test_off_the_grid_is_refused(prefix: int, region: int) -> None:
    with pytest.raises(ValueError, match="multiples"):
        rad_mask(prefix, region, 8, 1)


def test_layout_pads_with_eos_to_whole_blocks_and_opens_them() -> None:
    region = lay_out(torch.tensor([50, 51]), [torch.arange(1, 6), torch.arange(1, 10)], block=4, eos=99)
    assert region.ids.tolist() == [
        [50, 51, 1, 2, 3, 4, 5, 99, 99, 99, 99, 99],
        [50, 51, 1, 2, 3, 4, 5, 6, 7, 8, 9, 99],
    ]
    assert region.open.int().tolist() == [[0, 0] + [1] * 6 + [0] * 4, [0, 0] + [1] * 10]


def test_a_full_block_still_gets_an_eos() -> None:
    region = lay_out(torch.tensor([], dtype=torch.long), [torch.arange(1, 9)], block=8, eos=99)
    assert region.ids.shape == (1, 16)
    assert region.ids[0, 8:].tolist() == [99] * 8
    assert region.open.all()


def test_noise_copies_complete_each_other_and_leave_fixed_tokens_alone() -> None:
    open_ = torch.ones(64, 32, dtype=torch.bool)
    open_[:, :3] = False
    first, second = draw_noise(open_, 8, torch.Generator().manual_seed(1))
    assert torch.equal(first ^ second, open_)
    assert not (first & second).any()


def test_noise_rates_differ_by_block_and_some_blocks_are_masked_whole() -> None:
    open_ = torch.ones(2000, 16, dtype=torch.bool)
    first, _ = draw_noise(open_, 8, torch.Generator().manual_seed(2))
    share = first.view(2000, 2, 8).float().mean(-1)
    assert share.mean() == pytest.approx(0.15 + 0.85 * 0.5, abs=0.02)
    assert (share == 1).float().mean() == pytest.approx(0.15 + 0.85 / 9, abs=0.02)
    assert torch.corrcoef(share.T)[0, 1].abs() < 0.06


def test_noise_is_a_function_of_the_seed() -> None:
    open_ = torch.ones(4, 16, dtype=torch.bool)
    again = [draw_noise(open_, 8, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


def test_the_loss_on_a_noisy_block_is_that_of_decoding_from_the_same_state() -> None:
    """Every token's loss, float64: in the RAD row, and in a forward of the clean text so far and the noisy block."""
    data, model = small_data(), small_model(6).double()
    layout, features = data.layout, data.features.rows([2]).double()
    region = lay_out(layout.prompt[:0], [torch.from_numpy(data.reports[2].ids)], BLOCK, layout.eos)
    noise = draw_noise(region.open, BLOCK, torch.Generator().manual_seed(5))
    noisy = [region.ids.masked_fill(part, layout.mask) for part in noise]
    prefix, width = layout.length, region.ids.shape[1]
    where = layout.positions[:, prefix : prefix + width]
    positions = torch.cat([layout.positions[:, :prefix], where, where, where], dim=1)
    row = torch.cat([layout.prompt[None], region.ids, *noisy], dim=1)
    with torch.no_grad():
        mask = rad_mask(prefix, width, BLOCK, copies=2)
        trained = model.lm_head(hidden_states(model, embed(model, row, layout, features), positions, mask)[0])
        for copy, ids in enumerate(noisy):
            for start in range(0, width, BLOCK):
                state = torch.cat([layout.prompt[None], region.ids[:, :start], ids[:, start : start + BLOCK]], dim=1)
                number = torch.arange(state.shape[1]) // BLOCK
                visible = number[None, :] <= number[:, None]
                embeds = embed(model, state, layout, features)
                decoded = model.lm_head(
                    hidden_states(model, embeds, layout.positions[:, : state.shape[1]], visible)[0, -BLOCK:]
                )
                at = prefix + (1 + copy) * width + start
                truth = region.ids[0, start : start + BLOCK]
                losses = torch.nn.functional.cross_entropy(decoded, truth, reduction="none")
                same = torch.nn.functional.cross_entropy(trained[at : at + BLOCK], truth, reduction="none")
                assert float((losses - same).abs().max()) <= 1e-5
