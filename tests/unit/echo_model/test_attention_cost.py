"""What attention costs, counted: RAD against a copy of the whole sequence."""

from __future__ import annotations

import pytest

from echo_model.training.attention_cost import TILE, AttentionCost, attention_cost, duplicated_layout, rad_layout


@pytest.fixture(scope="module")
def published() -> tuple[AttentionCost, AttentionCost]:
    """2,870 vision tokens, a question, a report of 180 tokens, blocks of 8."""
    return tuple(attention_cost(layout(2_870 + 58, 180, 8)) for layout in (rad_layout, duplicated_layout))  # type: ignore[return-value]


def test_rad_costs_less_by_the_published_factor(published: tuple[AttentionCost, AttentionCost]) -> None:
    """arXiv 2604.09450 states about 72 % less, 3.6 times."""
    rad, duplicated = published
    assert (rad.tokens, duplicated.tokens) == (2_928 + 2 * 184, 2 * (2_928 + 184))
    assert duplicated.whole / rad.whole == pytest.approx(3.6, abs=0.05)
    assert 1 - rad.whole / duplicated.whole == pytest.approx(0.72, abs=0.005)


def test_even_kernels_that_compute_nothing_in_vain_gain(published: tuple[AttentionCost, AttentionCost]) -> None:
    rad, duplicated = published
    for cost in published:
        assert cost.allowed <= cost.tiled <= (cost.tokens + TILE) ** 2
        assert cost.allowed < 0.6 * cost.whole
    assert duplicated.allowed / rad.allowed == pytest.approx(1.8, abs=0.05)
    assert duplicated.tiled / rad.tiled > 1.7


def test_pairs_are_those_of_the_rules_counted_by_hand() -> None:
    """Prompt of 8, response of 7 and its end, blocks of 4: tokens see whole blocks."""
    rad = attention_cost(rad_layout(8, 7, 4))
    prefix = 4 * 4 + 4 * 8
    clean = 4 * (8 + 4) + 4 * (8 + 8)
    noisy = 4 * (8 + 4) + 4 * (8 + 4 + 4)
    assert (rad.tokens, rad.allowed) == (24, prefix + clean + noisy)
    everything = attention_cost(duplicated_layout(8, 7, 4))
    causal = sum(4 * 4 * number for number in (1, 2, 3, 4))
    assert (everything.tokens, everything.allowed) == (32, 2 * causal)
    assert rad.tiled == everything.tiled == TILE * TILE


def test_a_prompt_that_ends_inside_a_block_gives_its_tail_to_the_response() -> None:
    assert attention_cost(rad_layout(10, 5, 4)).tokens == 8 + 2 * 8
