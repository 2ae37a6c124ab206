"""dParallel, T3D and adjacent-state consistency: each loss against its definition written out."""

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from echo_model.training.dcd import masked_states
from echo_model.training.objectives import (
    T3D,
    DParallel,
    consistency_loss,
    decode_order,
    dparallel_loss,
    t3d_loss,
)
from echo_model.training.rollout import Trajectories, log_probabilities
from unit.echo_model.small_training import BLOCK, small_data, small_model

LAYOUT = small_data().layout


def answers(steps: list[list[int]], ends: list[int]) -> Trajectories:
    """Answers of drawn tokens; `steps` as a teacher fixed them, 0 behind the end; `ends`: place of the end token."""
    step = torch.tensor(steps)
    ids = torch.randint(40, 300, step.shape, generator=torch.Generator().manual_seed(5))
    open_ = torch.zeros(step.shape, dtype=torch.bool)
    for row, end in enumerate(ends):
        ids[row, end:] = LAYOUT.eos
        open_[row, : (end // BLOCK + 1) * BLOCK] = True
    log = torch.zeros(*step.shape, 1)
    return Trajectories(ids, step, ids[..., None], log, open_, torch.ones(len(ends), dtype=torch.bool))


PATHS = answers(
    [
        [2, 1, 1, 3, 2, 1, 4, 1, 1, 2, 1, 3, 0, 0, 0, 0],
        [1, 1, 2, 2, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ],
    [11, 5],
)
FEATURES = small_data().features.rows([0, 1])


def test_decode_order_follows_steps_then_places_and_leaves_closed_blocks_out() -> None:
    order = decode_order(PATHS, BLOCK)
    assert order[0].tolist() == [4, 0, 1, 6, 5, 2, 7, 3, 0, 2, 1, 3, 4, 5, 6, 7]
    assert order[1].tolist() == [0, 1, 2, 3, 4, 5, 6, 7] + [BLOCK] * 8


def test_the_prompts_tail_takes_no_place_in_the_order() -> None:
    paths = PATHS.chosen(torch.tensor([True, False]))
    paths.step[0, :2], paths.open[0, :2] = 0, False
    assert decode_order(paths, BLOCK)[0, :8].tolist() == [8, 8, 0, 4, 3, 1, 5, 2]


@torch.no_grad()
def log_at(model: Any, masks: list[torch.Tensor]) -> list[torch.Tensor]:
    states = masked_states(model, LAYOUT, FEATURES, PATHS, BLOCK, masks)
    return [log_probabilities(model.lm_head(state), LAYOUT.mask) for state in states]


def test_copies_of_a_row_do_not_see_each_other() -> None:
    model = small_model(4).double()
    half = PATHS.open & (torch.arange(PATHS.open.shape[1]) % 2 == 0)
    features = FEATURES.double()
    together = masked_states(model, LAYOUT, features, PATHS, BLOCK, [half, PATHS.open])
    alone = masked_states(model, LAYOUT, features, PATHS, BLOCK, [PATHS.open])
    assert torch.allclose(together[1], alone[0], atol=1e-12)


def test_dparallel_learns_every_token_once_and_sharpens_what_is_right() -> None:
    model = small_model(4)
    generator = torch.Generator().manual_seed(3)
    loss, figures = dparallel_loss(model, LAYOUT, FEATURES, PATHS, BLOCK, generator, DParallel(0.7, 0.5))
    first = PATHS.open & (torch.rand(PATHS.open.shape, generator=torch.Generator().manual_seed(3)) < 0.5)
    logs = log_at(model, [first, PATHS.open & ~first])
    losses, entropies = [], []
    for row, place in PATHS.open.nonzero().tolist():
        log = logs[0 if first[row, place] else 1][row, place]
        truth = int(PATHS.ids[row, place])
        losses.append(-float(log[truth]))
        if int(log.argmax()) == truth:
            weights = (log / 0.5).softmax(-1)
            entropies.append(-sum(float(w) * math.log(float(w)) for w in weights if float(w) > 0))
    ce, entropy = sum(losses) / len(losses), sum(entropies) / max(1, len(entropies))
    assert figures["ce"] == pytest.approx(ce, rel=1e-4)
    assert figures["entropy"] == pytest.approx(entropy, rel=1e-4)
    assert loss.item() == pytest.approx(ce + 0.7 * entropy, rel=1e-4)


def test_the_certainty_term_makes_a_model_surer_where_it_is_right() -> None:
    model = small_model(4)

    def learn(weight: float, steps: int, rate: float) -> float:
        optimizer = torch.optim.SGD(model.model.language_model.parameters(), lr=rate)
        figures: dict[str, float] = {}
        for _ in range(steps):
            noise = torch.Generator().manual_seed(0)
            loss, figures = dparallel_loss(model, LAYOUT, FEATURES, PATHS, BLOCK, noise, DParallel(weight, 1.0))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert figures["agree"] > 0
        return figures["entropy"]

    learn(0.0, 20, 0.3)
    learnt = copy.deepcopy(model.state_dict())
    plain = learn(0.0, 6, 0.02)
    model.load_state_dict(learnt)
    assert learn(5.0, 6, 0.02) < plain


def test_t3d_starts_at_even_odds_and_adds_the_path() -> None:
    model = small_model(4)
    loss, figures = t3d_loss(model, model, LAYOUT, FEATURES, PATHS, BLOCK, torch.Generator().manual_seed(1))
    assert figures["real"] == pytest.approx(math.log(2), abs=1e-5)
    assert figures["fake"] == pytest.approx(math.log(2), abs=1e-5)
    options = T3D()
    assert loss.item() == pytest.approx(math.log(2) * (1 + options.alpha) + options.path * figures["path"], rel=1e-5)


def test_t3d_path_predicts_the_next_tokens_from_the_prefix() -> None:
    """Segments of a whole block: the prefix is always empty, so the term is cross-entropy from full masks."""
    model = small_model(4)
    options = T3D(segment=BLOCK, ratios=((1.0, 1.0),))
    _, figures = t3d_loss(model, model, LAYOUT, FEATURES, PATHS, BLOCK, torch.Generator().manual_seed(1), options)
    log = log_at(model, [PATHS.open])[0][PATHS.open]
    assert figures["path"] == pytest.approx(float(functional.nll_loss(log, PATHS.ids[PATHS.open])), rel=1e-4)


def test_t3d_moves_the_student_to_the_teachers_tokens_and_away_from_its_guesses() -> None:
    reference, model = small_model(4), small_model(4)
    options = T3D(path=0.0, ratios=((1.0, 1.0),))
    optimizer = torch.optim.SGD(model.model.language_model.parameters(), lr=0.5)
    before = log_at(model, [PATHS.open])[0][PATHS.open].detach()
    loss, _ = t3d_loss(model, reference, LAYOUT, FEATURES, PATHS, BLOCK, torch.Generator().manual_seed(1), options)
    loss.backward()
    optimizer.step()
    after = log_at(model, [PATHS.open])[0][PATHS.open].detach()
    real, fake = PATHS.ids[PATHS.open], before.argmax(-1)
    moved = (after - before).gather(-1, real[:, None]).mean() - (after - before).gather(-1, fake[:, None]).mean()
    assert float(moved) > 0


def test_consistency_of_blocks_of_one_step_is_cross_entropy() -> None:
    paths = Trajectories(PATHS.ids, (PATHS.step > 0).long(), PATHS.top_ids, PATHS.top_log, PATHS.open, PATHS.ended)
    model = small_model(4)
    loss, figures = consistency_loss(model, LAYOUT, FEATURES, paths, BLOCK, torch.Generator().manual_seed(2))
    log = log_at(model, [paths.open])[0][paths.open]
    assert figures["ce"] == pytest.approx(float(functional.nll_loss(log, paths.ids[paths.open])), rel=1e-4)
    assert loss.item() == pytest.approx(figures["ce"] + figures["kl"], rel=1e-5)


def test_consistency_compares_adjacent_states() -> None:
    model = small_model(4)
    generator = torch.Generator().manual_seed(2)
    _, figures = consistency_loss(model, LAYOUT, FEATURES, PATHS, BLOCK, generator)
    steps = PATHS.step.reshape(2, -1, BLOCK).amax(-1)
    done = (torch.rand(steps.shape, generator=torch.Generator().manual_seed(2)) * steps).long()
    late = torch.where(PATHS.step > 0, PATHS.step, 99)
    now = PATHS.open & (late > done.repeat_interleave(BLOCK, dim=1))
    after = PATHS.open & (late > done.repeat_interleave(BLOCK, dim=1) + 1)
    with torch.no_grad():
        noisier, clearer = log_at(model, [now])[0], log_at(model, [after])[0]
    apart = [
        sum(
            math.exp(c) * (c - s)
            for c, s in zip(clearer[r, p].tolist(), noisier[r, p].tolist(), strict=True)
            if c > -100
        )
        for r, p in after.nonzero().tolist()
    ]
    assert figures["kl"] == pytest.approx(sum(apart) / len(apart), rel=1e-3)
