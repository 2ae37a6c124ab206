"""The teacher's decoding: the canonical rule, left-to-right answers, storage, and what is dropped."""

from pathlib import Path

import pytest
import torch

from echo_model.training.agreement import says_the_same
from echo_model.training.autoregressive import as_trajectories, decode_left_to_right
from echo_model.training.dcd import Distillation, distil_loss, divergence, reverse_divergence
from echo_model.training.loop import Stopped
from echo_model.training.rollout import Trajectories, canonical_log, log_probabilities, roll_out
from echo_model.training.text_stages import embed, hidden_states
from echo_model.training.trajectory_store import StoredTrajectories, join, write_shards
from unit.echo_model.small_training import BLOCK, ending, small_data, small_model


def log_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def test_near_ties_go_to_the_lowest_number_and_the_belief_adds_up() -> None:
    log = torch.stack([log_of(0.1, 0.3, 0.2, 0.4), log_of(0.1, 0.1, 0.1, 0.7), log_of(0.25, 0.25, 0.25, 0.25)])
    moved = canonical_log(log, 0.6).exp()
    assert torch.allclose(moved[0], torch.tensor([0.1, 0.7, 0.2, 0.0]))
    assert torch.allclose(moved[1], torch.tensor([0.1, 0.1, 0.1, 0.7]))
    assert torch.allclose(moved[2], torch.tensor([1.0, 0.0, 0.0, 0.0]))


def test_a_share_of_one_changes_nothing_but_exact_ties() -> None:
    log = torch.randn(50, 20, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert torch.allclose(canonical_log(log, 1.0), log, atol=1e-6)


def test_the_canonical_rule_decides_the_teachers_tokens() -> None:
    data, model = small_data(), small_model(2)
    features = data.features.rows([0, 1])
    keys = {"tau": 0.05, "top_k": 8, "max_tokens": 16}
    plain = roll_out(model, data.layout, features, BLOCK, **keys)
    same = roll_out(model, data.layout, features, BLOCK, **keys, canonical=1.0)
    lowest = roll_out(model, data.layout, features, BLOCK, **keys, canonical=1e-9)
    assert torch.equal(plain.ids, same.ids)
    assert int(lowest.ids[:, 0].max()) == 0  # every token counts as nearly equal, so the first of all is taken
    assert torch.allclose(lowest.top_log[..., 0].exp()[lowest.step > 0], torch.ones(1), atol=1e-5)


def test_confidence_of_a_near_tie_stays_low() -> None:
    """Two equal tokens: canonical makes the belief 1, but the position must wait as if it were one half."""
    data, model = small_data(), small_model(2)
    paths = roll_out(
        model, data.layout, data.features.rows([0]), BLOCK, tau=0.9999, top_k=4, max_tokens=8, canonical=1e-9
    )
    assert sorted(paths.step[0, :BLOCK].tolist()) == list(range(1, BLOCK + 1))


def test_left_to_right_is_the_slow_obvious_loop() -> None:
    data, model = small_data(), small_model(3)
    features = data.features.rows([0, 1])
    ids, ended = decode_left_to_right(model, data.layout, features, max_tokens=12)
    assert not ended.any()
    for row in range(2):
        told = data.layout.prompt.tolist()
        for at in range(12):
            length = len(told)
            causal = torch.ones(length, length, dtype=torch.bool).tril()
            embeds = embed(model, torch.tensor([told]), data.layout, features[row : row + 1])
            with torch.no_grad():
                states = hidden_states(model, embeds, data.layout.positions[:, :length], causal)
                best = int(log_probabilities(model.lm_head(states[0, -1]), data.layout.mask).argmax())
            assert best == int(ids[row, at])
            told.append(best)


def test_left_to_right_ends_at_the_end_token() -> None:
    data, model = small_data(), small_model(3)
    free, _ = decode_left_to_right(model, data.layout, data.features.rows([0]), max_tokens=12)
    stop = int(free[0, 5])
    at = free[0].tolist().index(stop)
    ids, ended = decode_left_to_right(model, ending(data.layout, stop), data.features.rows([0]), max_tokens=12)
    assert ended.all()
    assert ids.shape[1] == at + 1
    assert torch.equal(ids[0], free[0, : at + 1])


@pytest.mark.parametrize("length", [1, 7, 8, 9])
def test_answers_as_trajectories_lie_on_the_grid(length: int) -> None:
    layout = small_data().layout
    ids = torch.full((2, 12), layout.eos)
    ids[0, :length] = 300
    ids[1, :3] = 301
    paths = as_trajectories(ids, torch.tensor([True, True]), layout, BLOCK)
    assert paths.ids.shape[1] == -(-(max(length, 3) + 1) // BLOCK) * BLOCK
    assert int((paths.step[0] > 0).sum()) == length + 1
    assert int(paths.open[1].sum()) == BLOCK
    assert paths.ids[0, :length].eq(300).all()
    assert paths.ids[0, length:].eq(layout.eos).all()


def some_paths(rows: int, width: int, token: int = 7, *, ended: bool = True) -> Trajectories:
    """Answers of ``width - 1`` different tokens and an end token."""
    layout = small_data().layout
    ids = torch.arange(width).repeat(rows, 1) + 20 + token
    ids[:, -1] = layout.eos
    log = torch.full((rows, width, 4), -3.0)
    log[..., 0] = -0.2
    top = ids[..., None] + torch.arange(4)
    full = torch.ones(rows, width, dtype=torch.bool)
    return Trajectories(ids, full.long(), top, log, full, torch.full((rows,), ended))


def test_shards_are_written_once_and_read_back(tmp_path: Path) -> None:
    asked: list[range] = []

    def decode(rows: range) -> Trajectories:
        asked.append(rows)
        if rows.start == 4 and len(asked) == 2:
            raise Stopped("cut off")
        return some_paths(len(rows), 8 if rows.start else 16, token=rows.start)

    with pytest.raises(Stopped):
        write_shards(tmp_path, decode, 10, shard=4)
    write_shards(tmp_path, decode, 10, shard=4)
    assert asked == [range(4), range(4, 8), range(4, 8), range(8, 10)]
    stored = StoredTrajectories(tmp_path, small_data().layout.eos)
    assert stored.counts == {"decoded": 10, "loops": 0, "endless": 0, "wrong": 0, "used": 10}
    assert stored.rows.tolist() == list(range(10))
    assert stored.lengths.tolist() == [16] * 4 + [8] * 6
    narrow, wide = stored.batch([9, 5]), stored.batch([0, 9])
    assert narrow.ids.shape == (2, 8)
    assert wide.ids.shape == (2, 16)
    assert torch.equal(narrow.ids[0], some_paths(1, 8, token=8).ids[0])
    assert not wide.open[1, 8:].any()
    assert torch.allclose(wide.top_log[0], some_paths(1, 16, token=0).top_log[0], atol=1e-3)


def test_loops_and_endless_answers_are_dropped_and_counted(tmp_path: Path) -> None:
    loop, endless = some_paths(1, 24), some_paths(2, 24, ended=False)
    loop.ids[0, :21] = torch.arange(7).repeat(3) + 40
    whole = join([some_paths(3, 8), loop, endless], small_data().layout.eos)
    write_shards(tmp_path, lambda rows: whole, 6, shard=6)
    stored = StoredTrajectories(tmp_path, small_data().layout.eos)
    assert stored.counts == {"decoded": 6, "loops": 1, "endless": 2, "wrong": 0, "used": 3}
    assert stored.rows.tolist() == [0, 1, 2]


def test_answers_that_disagree_with_the_reference_are_dropped_and_counted(tmp_path: Path) -> None:
    layout = small_data().layout
    whole = some_paths(4, 8)
    write_shards(tmp_path, lambda rows: whole, 4, shard=4)
    asked: list[tuple[int, list[int]]] = []

    def agrees(row: int, answer: list[int]) -> bool:
        asked.append((row, answer))
        return row != 2

    stored = StoredTrajectories(tmp_path, layout.eos, agrees)
    assert stored.counts == {"decoded": 4, "loops": 0, "endless": 0, "wrong": 1, "used": 3}
    assert stored.rows.tolist() == [0, 1, 3]
    assert asked == [(row, whole.ids[row, :-1].tolist()) for row in range(4)]  # without the end token


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ("The heart is large. Left pleural effusion.", True),
        ("Impression: cardiomegaly, pleural effusion on the left.", True),
        ("The heart is large. Right pleural effusion.", False),
        ("The heart is large.", False),
        ("The heart is large. Left pleural effusion. Left pneumothorax.", False),
    ],
)
def test_agreement_is_about_findings_and_sides(answer: str, same: bool) -> None:
    assert says_the_same(answer, "There is a left pleural effusion. Cardiomegaly. No pneumothorax.") is same


def test_no_usable_answer_is_an_error(tmp_path: Path) -> None:
    write_shards(tmp_path, lambda rows: some_paths(len(rows), 8, ended=False), 2)
    with pytest.raises(ValueError, match="more training"):
        StoredTrajectories(tmp_path, 2)


def test_divergences_of_known_distributions() -> None:
    teacher = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    student = torch.tensor([[0.4, 0.2, 0.1, 0.3]])
    top = torch.tensor([[0, 1]])
    bins_t, bins_s = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.2, 0.4])
    forward = divergence(top, teacher.log()[:, :2], student.log())
    backward = reverse_divergence(top, teacher.log()[:, :2], student.log())
    assert forward.item() == pytest.approx(float((bins_t * (bins_t / bins_s).log()).sum()), abs=1e-6)
    assert backward.item() == pytest.approx(float((bins_s * (bins_s / bins_t).log()).sum()), abs=1e-6)


def test_every_option_of_distillation_changes_the_loss() -> None:
    data, model = small_data(), small_model(4)
    paths = some_paths(2, 16)
    paths.step[:, 3] = 4
    features = data.features.rows([0, 1])

    def loss(**options: float | bool) -> float:
        with torch.no_grad():
            chosen = Distillation(**options)  # type: ignore[arg-type]  # the values below are of the right kinds
            return float(distil_loss(model, data.layout, features, paths, BLOCK, chosen)[0])

    ways = [{}, {"weighted": False}, {"eos_weight": 0.0}, {"ce_weight": 1.0}, {"reverse": True}]
    assert len({round(loss(**way), 5) for way in ways}) == len(ways)
    assert loss(ce_weight=1.0) > loss() > loss(eos_weight=0.0)


def test_decisive_tokens_count_more_in_distillation() -> None:
    data, model = small_data(), small_model(4)
    paths = some_paths(2, 16)
    features = data.features.rows([0, 1])
    vocabulary = model.config.text_config.vocab_size
    told = paths.ids[paths.step > 0]
    chosen = torch.zeros(vocabulary, dtype=torch.bool)
    chosen[told[: len(told) // 4]] = True

    def loss(weight: float, decisive: torch.Tensor | None) -> float:
        options = Distillation(weighted=False, eos_weight=0.0, decisive=decisive, decisive_weight=weight)
        with torch.no_grad():
            return float(distil_loss(model, data.layout, features, paths, BLOCK, options)[0])

    assert loss(4.0, torch.ones(vocabulary, dtype=torch.bool)) == pytest.approx(loss(1.0, None), rel=1e-5)
    strong, all_ = int(chosen[told].sum()), len(told)
    assert 0 < strong < all_
    # a weighted mean of two groups is known everywhere from two of its weights
    at_one, at_two = loss(1.0, chosen) * all_, loss(2.0, chosen) * (all_ + strong)
    assert loss(5.0, chosen) == pytest.approx((at_one + 4 * (at_two - at_one)) / (all_ + 4 * strong), rel=1e-4)
