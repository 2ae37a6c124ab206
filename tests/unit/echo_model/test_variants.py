"""The comparison of methods: rows on a small budget, resuming, the table, and what counts as a confirmed claim."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from echo_model import demo_checkpoint_path
from echo_model.model import load_model
from echo_model.training import variants
from echo_model.training.corpus import Corpus
from echo_model.training.loop import Stopped
from echo_model.training.variants import DCD, Budget, Seed, run
from echo_model.training.variants_rows import ROWS
from echo_model.training.variants_table import CLAIMS, Claim, collect, verdict

BUDGET = Budget(phantoms=32, layers=4, ar=16, rad=16, answers=16, student=32, measured=3)
KEYS = {
    "macro_f1",
    "laterality_accuracy",
    "exact",
    "rouge_l",
    "cider",
    "garbled_rate",
    "perplexity",
    "tokens_per_forward",
    "tokens_per_second",
    "speed_up",
}


@pytest.fixture
def from_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with the demo model's weights instead of random ones, which would never end an answer, and hardly learn."""
    loaded = load_model(demo_checkpoint_path())
    loaded.model.requires_grad_(True)
    monkeypatch.setattr(variants, "train_tokenizer", lambda *_: loaded.tokenizer)
    monkeypatch.setattr(variants, "new_model", lambda *_, layers: loaded.model)
    for name in ("AR_RATES", "RAD_RATES", "DCD_RATES"):
        monkeypatch.setattr(variants, name, (1e-6, 1e-6))
    monkeypatch.setattr(Corpus, "start", Corpus.fill)


class StopAt(threading.Event):
    """Says "stop" once it has been asked so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def is_set(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.usefixtures("from_demo")
def test_rows_of_every_kind_on_a_small_budget(tmp_path: Path) -> None:
    rows = [row for row in ROWS if row.name in ("ar", "dcd8_gated", "t3d", "ce_canonical_ar")]
    with pytest.raises(Stopped):  # in the middle of RAD
        run([1], BUDGET, tmp_path, rows=rows, tower=demo_checkpoint_path(), stopped=StopAt(4))
    run([1], BUDGET, tmp_path, rows=rows, tower=demo_checkpoint_path(), stopped=threading.Event())
    table = collect(tmp_path, {"phantoms": BUDGET.phantoms})
    assert [row["name"] for row in table["rows"]] == ["ar", "dcd8_gated", "ce_canonical_ar", "t3d"]
    figures = {row["name"]: row["figures"] for row in table["rows"]}
    assert all(set(some) == KEYS for some in figures.values())
    assert figures["ar"]["tokens_per_forward"]["mean"] == 1.0
    assert 1.0 < figures["t3d"]["tokens_per_forward"]["mean"] <= 2.2
    assert figures["dcd8_gated"]["tokens_per_forward"]["mean"] > figures["t3d"]["tokens_per_forward"]["mean"]
    assert all(claim["verdict"] == "not seen" or claim["seeds"] == [] for claim in table["claims"])
    assert not list(tmp_path.glob("seed1/*.state.pt"))  # optimiser states of finished stages are gone
    # what is measured stays measured: nothing is trained or decoded a second time
    kept = json.loads((tmp_path / "seed1" / "rows" / "t3d.json").read_text("utf-8"))
    seed = Seed(1, BUDGET, tmp_path, demo_checkpoint_path(), lambda: pytest.fail("something was trained again"))
    assert seed.measure(next(row for row in ROWS if row.name == "t3d")) == kept


def test_seeds_of_several_runs_make_one_table(tmp_path: Path) -> None:
    def ran(work: Path, seed: int, f1: float) -> None:
        (work / f"seed{seed}" / "rows").mkdir(parents=True)
        for name, gain in (("dcd8", 0.1), ("rad_one_step", 0.0)):
            figures = dict.fromkeys(KEYS, 0.5) | {"macro_f1": f1 + gain}
            (work / f"seed{seed}" / "rows" / f"{name}.json").write_text(json.dumps(figures), encoding="utf-8")

    budget = {"phantoms": 32}
    ran(tmp_path / "one", 1, 0.6)
    ran(tmp_path / "two", 2, 0.7)
    ran(tmp_path / "two", 3, 0.65)
    first = json.loads(json.dumps(collect(tmp_path / "one", budget)))
    both = collect(tmp_path / "two", budget, first)
    assert both["seeds"] == [1, 2, 3]
    rows = {row["name"]: row["figures"]["macro_f1"]["seeds"] for row in both["rows"]}
    assert rows == {"dcd8": [0.7, pytest.approx(0.8), 0.75], "rad_one_step": [0.6, 0.7, 0.65]}
    assert {claim["claim"]: claim["verdict"] for claim in both["claims"]}["DCD restores one step"] == "confirmed"
    assert len(both["machines"]) == 1
    with pytest.raises(ValueError, match="another budget"):
        collect(tmp_path / "two", {"phantoms": 64}, first)


def test_every_row_has_a_way_to_its_model() -> None:
    models = {"ar", "ar_raw", "rad8", "dparallel", "t3d", "consistency", *DCD}
    assert {row.model for row in ROWS} <= models
    assert len({row.name for row in ROWS}) == len(ROWS)
    names = {row.name for row in ROWS}
    assert all({claim.better, claim.worse} <= names for claim in CLAIMS)


def test_a_scaled_budget_keeps_the_shape() -> None:
    small = Budget().scaled(0.1)
    assert small.layers == Budget().layers
    assert small.ar == Budget().ar // 10


CLAIM = Claim("one beats two", "one", "two", ("macro_f1", "garbled_rate"))


@pytest.mark.parametrize(
    ("f1", "garbled", "word"),
    [
        (([0.9, 0.91, 0.9], [0.7, 0.72, 0.71]), ([0.1, 0.1, 0.1], [0.1, 0.1, 0.1]), "confirmed"),
        (([0.9, 0.91, 0.9], [0.7, 0.72, 0.71]), ([0.2, 0.21, 0.2], [0.1, 0.1, 0.1]), "not seen"),  # one each way
        (([0.7, 0.72, 0.71], [0.9, 0.91, 0.9]), ([0.2, 0.21, 0.2], [0.1, 0.1, 0.1]), "refuted"),
        (([0.9, 0.6, 0.9], [0.7, 0.72, 0.71]), ([0.1, 0.1, 0.1], [0.1, 0.1, 0.1]), "not seen"),  # seeds disagree
        (([0.9, 0.75, 0.72], [0.7, 0.72, 0.71]), ([0.1, 0.1, 0.1], [0.1, 0.1, 0.1]), "not seen"),  # noise is larger
        (([0.9], [0.5]), ([0.0], [0.5]), "not seen"),  # one seed proves nothing
    ],
)
def test_verdicts(f1: Any, garbled: Any, word: str) -> None:
    figures = {
        "one": {"macro_f1": f1[0], "garbled_rate": garbled[0]},
        "two": {"macro_f1": f1[1], "garbled_rate": garbled[1]},
    }
    assert verdict(CLAIM, figures)["verdict"] == word


def test_a_claim_without_its_rows_is_not_measured() -> None:
    assert verdict(CLAIM, {"one": {"macro_f1": [1.0], "garbled_rate": [0.0]}})["verdict"] == "not measured"
