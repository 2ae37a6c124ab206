"""`echo-model train` on a corpus: all stages end to end, exact resume, parts, processes, precision, what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from echo_model.cli import main
from echo_model.model import load_model
from echo_model.training.commands import train
from echo_model.training.config import StageName, TrainConfig, TrainConfigError, read_config
from echo_model.training.loop import Stopped
from echo_model.weights import canonical_key
from servers.ports import free_port
from unit.echo_model import study_parallel_job
from unit.echo_model.study_corpus import stock_model, stock_tokenizer, write_corpus, write_stock, write_toml

TESTS = Path(__file__).parents[2]
SMALL: dict[str, Any] = {"max_pixels": 56 * 84, "longest": 96, "loaders": 2, "checked": 0, "validated": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, a stock checkpoint, and what all three stages make of it."""
    folder = tmp_path_factory.mktemp("corpus training")
    write_corpus(folder, 8)
    write_stock(folder / "init")
    common = SMALL | {"corpus": "corpus", "work": "work", "batch": 3, "learning_rate": 5e-3}
    for stage, init, samples, more in (
        ("ar", "init", 180, {"checked": 1}),
        ("rad", "ar", 330, {"checked": 1}),
        ("dcd", "rad", 60, {"tau": 0.6, "ce_weight": 1.0}),
    ):
        keys = common | {"init": init, "out": stage, "samples": samples} | more
        assert main(["train", stage, "--config", str(write_toml(folder / f"{stage}.toml", **keys))]) == 0
    return folder


def config(place: Path, tmp_path: Path, stage: StageName = "rad", name: str = "out", **keys: Any) -> TrainConfig:
    """Four steps on the corpus, in a work folder of their own."""
    return read_config(toml(place, tmp_path, stage, name, **keys), stage)


def toml(place: Path, tmp_path: Path, stage: StageName = "rad", name: str = "out", **keys: Any) -> Path:
    values = SMALL | {
        "corpus": str(place / "corpus"),
        "init": str(place / "init"),
        "work": f"work-{name}",
        "out": name,
        "samples": 16,
        "batch": 4,
        "learning_rate": 1e-3,
    }
    return write_toml(tmp_path / f"{stage}-{name}.toml", **(values | keys))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of a checkpoint, by their names in today's layout: the stock one has older ones."""
    return {canonical_key(name): value for name, value in load_file(folder / "model.safetensors").items()}


def changed(before: Path, after: Path) -> set[str]:
    one, two = weights(before), weights(after)
    assert one.keys() == two.keys()
    return {name for name in one if not torch.equal(one[name], two[name])}


def last(curve: Path, key: str) -> Any:
    return [line[key] for line in map(json.loads, curve.read_text("utf-8").splitlines()) if key in line][-1]


def mean(curve: Path, key: str) -> float:
    """Over all steps: a line is the mean of those since the line before, and how many lines there are takes time."""
    lines = [line for line in map(json.loads, curve.read_text("utf-8").splitlines()) if key in line]
    steps = [0, *(line["step"] for line in lines)]
    total = sum(line[key] * (step - before) for line, before, step in zip(lines, steps, steps[1:], strict=False))
    return float(total / steps[-1])


def test_all_stages_end_in_a_checkpoint_that_reports_and_is_evaluated(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in ("ar", "rad", "dcd"):
        made = load_model(place / stage)
        assert made.mask_token_id == stock_tokenizer().get_vocab_size()
        assert made.image_config.max_pixels == SMALL["max_pixels"]
        assert made.max_images == 2
        assert made.generation_config["denoising_steps"] == (1 if stage == "dcd" else 8)
        assert "Not a medical device" in (place / stage / "MODEL_CARD.md").read_text("utf-8")
        assert not [name for name in changed(place / stage, place / "init") if "visual" in name]
        check = last(place / "work" / f"{stage}.jsonl", "check")
        assert check["loss"] > 0
        assert ("rouge_l" in check) == (stage != "dcd")
    assert mean(place / "work" / "rad.jsonl", "loss") < 3.0  # an untrained model begins above 5
    assert mean(place / "work" / "dcd.jsonl", "agree") > 0.3
    views = [str(place / "raw" / f"1-{view}.png") for view in ("frontal", "lateral")]
    assert main(["generate", "--model", str(place / "dcd"), "--study", "--json", *views]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["findings"]
    assert report["stats"]["tokens_per_forward"] > 2
    for most, count in (("1", 13), ("2", 8)):
        figures = tmp_path / f"figures-{most}.json"
        corpus = ["--corpus", str(place / "corpus"), "--views", most]
        assert main(["evaluate", "--model", str(place / "dcd"), *corpus, "--json", str(figures)]) == 0
        found = json.loads(figures.read_text())
        assert found["count"] == count
    assert found["rouge_l"] > 0.3  # most of it has been learnt by heart


@pytest.mark.slow
def test_a_run_killed_in_the_middle_goes_on_as_if_it_had_not_been(place: Path, tmp_path: Path) -> None:
    train("rad", config(place, tmp_path, name="whole", samples=32))
    file = toml(place, tmp_path, name="killed", samples=32, save_minutes=0)
    job = [sys.executable, study_parallel_job.__file__, str(file)]
    env = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "HOLD_AFTER_STEPS": "4"}
    process = subprocess.Popen(job, env=env)
    states = tmp_path / "work-killed" / "rad.states"
    deadline = time.monotonic() + 600
    try:
        while not any(int(state.parent.name) >= 2 for state in states.glob("*/.metadata")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with pytest.raises(TrainConfigError, match="--resume"):
        train("rad", config(place, tmp_path, name="killed", samples=32))
    train("rad", config(place, tmp_path, name="killed", samples=32), resume=True)
    assert not changed(tmp_path / "whole", tmp_path / "killed")


def test_a_run_that_is_told_to_stop_goes_on_exactly(place: Path, tmp_path: Path) -> None:
    train("ar", config(place, tmp_path, "ar", "whole"))
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(Stopped):
        train("ar", config(place, tmp_path, "ar", "cut"), stopped=stopped)
    train("ar", config(place, tmp_path, "ar", "cut"), resume=True)
    assert not changed(tmp_path / "whole", tmp_path / "cut")


def test_parts_checkpointing_and_reading_anew_change_nothing_but_rounding(place: Path, tmp_path: Path) -> None:
    train("rad", config(place, tmp_path, name="whole"))
    variants: dict[str, dict[str, Any]] = {
        "parts": {"accumulate": 2},
        "again": {"checkpointing": True},
        "read": {"cache_features": False},
    }
    for name, keys in variants.items():
        train("rad", config(place, tmp_path, name=name, **keys))
        one, two = weights(tmp_path / "whole"), weights(tmp_path / name)
        for key, value in one.items():
            assert torch.allclose(value, two[key], atol=2e-4), (name, key)
        losses = [mean(tmp_path / f"work-{work}" / "rad.jsonl", "loss") for work in ("whole", name)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_tower_learns_only_when_it_is_asked_to(place: Path, tmp_path: Path) -> None:
    train("ar", config(place, tmp_path, "ar", "seeing", train_vision=True, checkpointing=True))
    assert [name for name in changed(place / "init", tmp_path / "seeing") if "visual" in name]


def test_bfloat16_and_adapters(place: Path, tmp_path: Path) -> None:
    train("rad", config(place, tmp_path, name="half", dtype="bfloat16", lora_rank=2, learning_rate=0.05))
    after = weights(tmp_path / "half")
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    before = weights(place / "init")
    moved = {name for name in before if not torch.equal(before[name].bfloat16(), after[name])}
    embedding = {name for name in moved if "embed_tokens" in name}  # the new mask token
    assert moved - embedding
    assert all(name.endswith("proj.weight") and "visual" not in name for name in moved - embedding)


@pytest.mark.slow
def test_two_processes_sharded_or_not_train_as_one(place: Path, tmp_path: Path) -> None:
    plans: list[tuple[StageName, str, dict[str, Any]]] = [
        ("rad", "copied", {"checked": 1}),
        ("rad", "sharded", {"sharding": "full", "accumulate": 2, "checkpointing": True}),
        ("ar", "seeing", {"sharding": "full", "train_vision": True}),
        ("dcd", "taught", {"sharding": "full", "init": str(place / "rad"), "tau": 0.6}),
    ]
    for stage, name, keys in plans:
        train(stage, config(place, tmp_path, stage, f"{name}-1", **(keys | {"sharding": "none"})))
    files = [str(toml(place, tmp_path, stage, f"{name}-2", **keys)) for stage, name, keys in plans]
    env = os.environ | {
        "PYTHONPATH": str(TESTS),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
    }
    job = [sys.executable, study_parallel_job.__file__, *files]
    ranks = [
        subprocess.Popen(job, env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors.decode()[-3000:]
    finally:
        for process in ranks:
            with process:  # closes its pipe, and waits
                process.kill()
    for stage, name, _ in plans:
        losses = [mean(tmp_path / f"work-{name}-{world}" / f"{stage}.jsonl", "loss") for world in (1, 2)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-3), name
        one, two = (weights(tmp_path / f"{name}-{world}") for world in (1, 2))
        assert one.keys() == two.keys()
        for key, value in one.items():
            apart = (value - two[key]).abs()
            # AdamW makes a step out of the rounding of a gradient that is nearly nothing: a weight here and there
            assert float((apart > 2e-4).float().mean()) < 1e-4, (name, key)
            assert float(apart.max()) < 1e-3, (name, key)
    # the state of two sharded processes is taken up by a single one
    work: dict[str, Any] = {"sharding": "full", "accumulate": 2, "checkpointing": True, "work": "work-sharded-2"}
    train("rad", config(place, tmp_path, name="joined", **work), resume=True)
    assert not changed(tmp_path / "sharded-2", tmp_path / "joined")


@pytest.mark.parametrize(
    ("stage", "keys", "told"),
    [
        ("ar", {"init": None}, "'init' is missing"),
        ("rad", {"phantoms": 8}, "'phantoms' has no meaning for training on corpus"),
        ("rad", {"packed_tokens": 600}, "'packed_tokens' has no meaning for training on corpus"),
        ("rad", {"corpus": None}, "'max_pixels' has no meaning for training on phantoms"),
        ("rad", {"device": "tpu"}, "'device' must be one of cpu, cuda"),
        ("rad", {"dtype": 16}, "'dtype' must be one of float32, bfloat16"),
        ("rad", {"accumulate": 3}, "'accumulate': a batch of 4"),
        ("rad", {"train_vision": True}, "'train_vision' has no meaning for the stage rad"),
        ("ar", {"train_vision": True, "lora_rank": 2}, "'train_vision' and 'lora_rank'"),
        ("rad", {"corpus": "nowhere"}, "nowhere"),
        ("rad", {"longest": 2}, "no study of the split 'train' can be learnt from"),
        ("rad", {"block_length": 65}, "'block_length' must be at most 64"),
    ],
)
def test_a_wrong_file_names_the_key(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: StageName, keys: dict[str, Any], told: str
) -> None:
    file = toml(place, tmp_path, stage, **keys)
    assert main(["train", stage, "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_teacher_without_an_end_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainConfigError, match=r"'init'.*the teacher needs more training"):
        train("dcd", config(place, tmp_path, "dcd", tau=0.01))


def test_a_run_goes_on_with_its_own_corpus_and_weights_alone(place: Path, tmp_path: Path) -> None:
    train("rad", config(place, tmp_path))
    write_stock(tmp_path / "other", stock_model(9))
    note = tmp_path / "work-out" / "rad.config.json"
    begun = json.loads(note.read_text())
    for key in ("init_revision", "corpus_digest"):
        note.write_text(json.dumps(begun | {key: "another"}))
        with pytest.raises(TrainConfigError, match=key):
            train("rad", config(place, tmp_path, name="new", work="work-out"), resume=True)
