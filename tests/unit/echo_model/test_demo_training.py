"""The chain of stages of the demonstration model: stopped and taken up anywhere, it ends with the same weights."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from echo_model.data.tokenizer import train_tokenizer
from echo_model.model import load_model
from echo_model.training import demo
from echo_model.training.checkpoint import write_checkpoint
from echo_model.training.corpus import Corpus, training_report
from echo_model.training.demo import Training
from echo_model.training.demo_plan import FILE, Plan
from echo_model.training.loop import Stopped
from echo_model.training.shape import QUESTION
from echo_model.training.text_cache import load_texts
from echo_model.training.texts import tokenise
from unit.echo_model.small_training import small_model, small_tokenizer

PLAN = Plan(
    phantoms=32,
    vocabulary=1_800,
    tokenizer_reports=32,
    tower_first=48,
    tower_first_schedule=48,
    tower_heads=24,
    tower_samples=72,
    ar_samples=64,
    rad_samples=64,
    checked=2,
)


class StopAt(threading.Event):
    """Says "stop" once, when it has been asked so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def is_set(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model, and phantoms drawn in this process, which is sooner than a second interpreter starts."""
    monkeypatch.setattr(demo, "new_model", lambda tokenizer, seed: small_model(seed, spread=0.02))
    monkeypatch.setattr(demo, "load_texts", lambda plan, work, say: (small_tokenizer(), _texts(plan, work)))
    monkeypatch.setattr(Corpus, "start", Corpus.fill)


def _texts(plan: Plan, work: Path) -> Any:
    return [tokenise(small_tokenizer(), training_report(plan.train_seed, index)) for index in range(plan.phantoms)]


def run(work: Path, stops: list[int]) -> dict[str, torch.Tensor]:
    work.mkdir()
    for times in [*stops, 0]:
        training = Training(PLAN, work, StopAt(times))
        try:
            features, checker = training.tower(None), training.checker(1, PLAN.checked)
            training.left_to_right(features, checker)
            training.blocks(features, checker)
        except Stopped:
            assert times
        else:
            assert not times
    return dict(training.model.state_dict())


def test_stopped_anywhere_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    through = run(tmp_path / "through", [])
    cut = run(tmp_path / "cut", [2, 3, 2, 4])  # in both runs of the tower, in the features and in the text stages
    assert through.keys() == cut.keys()
    assert all(torch.equal(through[key], cut[key]) for key in through)
    curve = [json.loads(line) for line in (tmp_path / "cut" / "rad.jsonl").read_text("utf-8").splitlines()]
    assert "macro_f1" in curve[-1]["check"]


def test_texts_are_those_of_the_first_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, reports = load_texts(PLAN, tmp_path)
    monkeypatch.setattr("echo_model.training.text_cache.training_report", None)  # a second start must not write anew
    again, same = load_texts(PLAN, tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert len(reports) == PLAN.phantoms
    assert all(
        a.ids.tolist() == b.ids.tolist() and a.decisive.tolist() == b.decisive.tolist()
        for a, b in zip(reports, same, strict=True)
    )


def test_the_plan_of_a_work_folder_stays(tmp_path: Path) -> None:
    assert PLAN.of_folder(tmp_path) == PLAN
    assert Plan().of_folder(tmp_path) == PLAN
    (tmp_path / FILE).write_text('{"phantoms": 3}')
    with pytest.raises(ValueError, match="exactly the keys"):
        Plan().of_folder(tmp_path)


def test_a_run_goes_on_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = tmp_path / "start"
    write_checkpoint(small_model(3, spread=0.02), small_tokenizer(), start)
    work = tmp_path / "work"
    work.mkdir()
    training = Training(PLAN, work, threading.Event())
    features = training.take_over(start)
    taken = load_model(start).model.state_dict()
    assert all(torch.equal(value, taken[key]) for key, value in training.model.state_dict().items())
    assert bool(features.rows([0, PLAN.phantoms - 1]).abs().sum(dim=(1, 2)).gt(0).all())
    # a checkpoint of other texts would read its own words wrongly
    other = train_tokenizer([training_report(9, index).text for index in range(20)], QUESTION, 400)
    monkeypatch.setattr(demo, "load_texts", lambda plan, work, say: (other, []))
    monkeypatch.setattr(demo, "new_model", lambda tokenizer, seed: small_model(seed, tokenizer=tokenizer))
    with pytest.raises(ValueError, match="another one"):
        Training(PLAN, work, threading.Event()).take_over(start)
