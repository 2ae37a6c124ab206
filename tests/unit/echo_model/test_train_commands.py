"""`echo-model train`: its file, its stages end to end on a small model, and distillation against slow constructions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional

from echo_model.cli import main
from echo_model.data.tokenizer import train_tokenizer
from echo_model.model import load_model
from echo_model.training import commands
from echo_model.training.checkpoint import write_checkpoint
from echo_model.training.commands import train
from echo_model.training.config import STAGES, StageName, TrainConfig, TrainConfigError, read_config
from echo_model.training.corpus import Corpus, training_report
from echo_model.training.dcd import Distillation, dcd_loss, divergence, student_states
from echo_model.training.rad import rad_mask
from echo_model.training.rollout import Trajectories, log_probabilities, loops, roll_out, usable
from echo_model.training.shape import QUESTION, Layout, prompt_layout
from echo_model.training.text_stages import TextData, embed, hidden_states, train_text
from echo_model.training.texts import tokenise
from unit.echo_model.small_training import DrawnFeatures, small_model

BLOCK = 8


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([training_report(1, i).text for i in range(200)], QUESTION)


@pytest.fixture(scope="module")
def data(tokenizer: Tokenizer) -> TextData:
    reports = [tokenise(tokenizer, training_report(1, index)) for index in range(8)]
    return TextData(DrawnFeatures(), reports, prompt_layout(small_model(spread=0.02, tokenizer=tokenizer), tokenizer))  # type: ignore[arg-type]  # stands in
    # DrawnFeatures has the one method of Features that training uses


def ending(layout: Layout, token: int) -> Layout:
    """The layout with another end token: random weights seldom choose the true one."""
    return Layout(layout.prompt, layout.image_at, layout.positions, token, layout.pad, layout.mask)


def obvious_path(
    model: Any, layout: Layout, features: torch.Tensor, block: int, tau: float, max_tokens: int
) -> list[tuple[int, int, torch.Tensor]]:
    """One answer without a cache, one token decision at a time: (token, step, log-probabilities) of every position."""
    ids = layout.prompt.tolist()
    path: list[tuple[int, int, torch.Tensor]] = []
    last = -(-(len(ids) + max_tokens) // block) * block
    while layout.eos not in [token for token, _, _ in path] and len(ids) < last:
        room = block - len(ids) % block
        start, step = len(ids), 0
        found: dict[int, tuple[int, int, torch.Tensor]] = {}
        ids += [layout.mask] * room
        while len(found) < room:
            step += 1
            number = torch.arange(len(ids)) // block
            states = hidden_states(
                model,
                embed(model, torch.tensor([ids]), layout, features[None]),
                layout.positions[:, : len(ids)],
                number[None, :] <= number[:, None],
            )
            log = log_probabilities(model.lm_head(states[0, start:]), layout.mask)
            waiting = [at for at in range(room) if at not in found]
            sure = [at for at in waiting if float(log[at].max().exp()) >= tau]
            for at in sure or [max(waiting, key=lambda at: float(log[at].max()))]:
                found[at] = (int(log[at].argmax()), step, log[at])
                ids[start + at] = found[at][0]
        path += [found[at] for at in range(room)]
    return path


@pytest.mark.parametrize(("block", "tau"), [(8, 0.05), (8, 2.0), (16, 0.05), (5, 0.05)])
def test_targets_are_those_of_a_slow_obvious_decoding(
    tokenizer: Tokenizer, data: TextData, block: int, tau: float
) -> None:
    """Also with a prompt that ends inside a block (5, 16), and with one token a step (no confidence reaches 2)."""
    model = small_model(2, tokenizer=tokenizer)
    features = data.features.rows([0, 1, 2])
    with torch.no_grad():
        plain = obvious_path(model, data.layout, features[1], block, tau, 40)
        layout = ending(data.layout, plain[len(plain) - 12][0])
        paths = roll_out(model, layout, features, block, tau=tau, top_k=7, max_tokens=40)
        tail = layout.length % block
        for row in range(3):
            wanted = obvious_path(model, layout, features[row], block, tau, 40)
            tokens = [token for token, _, _ in wanted]
            assert bool(paths.ended[row]) == (layout.eos in tokens)
            stop = tokens.index(layout.eos) + 1 if layout.eos in tokens else len(tokens)
            assert paths.ids[row, tail : tail + stop].tolist() == tokens[:stop]
            assert paths.step[row, tail : tail + stop].tolist() == [step for _, step, _ in wanted[:stop]]
            assert (paths.ids[row, tail + stop :] == layout.eos).all()
            assert (paths.step[row, tail + stop :] == 0).all()
            assert paths.open[row].int().tolist() == [0] * tail + [1] * len(tokens) + [0] * (
                paths.ids.shape[1] - tail - len(tokens)
            )
            for at, (_, _, log) in enumerate(wanted[:stop]):
                torch.testing.assert_close(paths.top_log[row, tail + at], log.topk(7).values, rtol=1e-4, atol=1e-4)
    assert paths.ended.any()
    steps = paths.step[paths.step > 0]
    assert steps.max() == (block if tau > 1 else steps.max())
    assert steps.max() > 1


def test_the_student_sees_what_one_step_decoding_sees(tokenizer: Tokenizer, data: TextData) -> None:
    """Each block from full masks, the teacher's own tokens before it, without the RAD layout."""
    model = small_model(2, tokenizer=tokenizer)
    features = data.features.rows([3])
    with torch.no_grad():
        paths = roll_out(model, data.layout, features, BLOCK, tau=0.5, top_k=4, max_tokens=24)
        states = student_states(model, data.layout, features, paths, BLOCK)
        prompt = data.layout.prompt[: data.layout.length // BLOCK * BLOCK]
        for first in range(0, paths.ids.shape[1], BLOCK):
            block = paths.ids[0, first : first + BLOCK].masked_fill(
                paths.open[0, first : first + BLOCK], data.layout.mask
            )
            full = torch.cat([prompt, paths.ids[0, :first], block])
            number = torch.arange(len(full)) // BLOCK
            wanted = hidden_states(
                model,
                embed(model, full[None], data.layout, features),
                data.layout.positions[:, : len(full)],
                number[None, :] <= number[:, None],
            )
            torch.testing.assert_close(states[:, first : first + BLOCK], wanted[:, -BLOCK:], rtol=1e-4, atol=1e-4)


def test_divergence_over_all_tokens_is_that_of_torch_and_the_tail_counts_as_one() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(5, 9).log_softmax(-1), torch.randn(5, 9).log_softmax(-1)
    order = teacher.sort(descending=True)
    whole = functional.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(divergence(order.indices[:, :8], order.values[:, :8], student), whole)  # tail of one
    few = divergence(order.indices[:, :3], order.values[:, :3], student)
    for row in range(5):
        names = order.indices[row, :3].tolist()
        p = [float(teacher[row, n].exp()) for n in names]
        q = [float(student[row, n].exp()) for n in names]
        p, q = [*p, 1 - sum(p)], [*q, 1 - sum(q)]
        wanted = sum(a * float(torch.tensor(a / b).log()) for a, b in zip(p, q, strict=True))
        assert float(few[row]) == pytest.approx(wanted, abs=1e-5)
    torch.testing.assert_close(divergence(order.indices[:, :3], order.values[:, :3], teacher), torch.zeros(5))


def test_divergence_is_finite_and_has_gradients_when_the_teacher_is_certain() -> None:
    logits = torch.zeros(1, 6, requires_grad=True)
    certain = log_probabilities(torch.tensor([[60.0, 0, 0, 0, 0, 0]]), 5)
    top = certain.topk(2)
    loss = divergence(top.indices, top.values, log_probabilities(logits, 5)).sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch publishes no type for it
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_loops_and_endless_answers_are_dropped() -> None:
    assert loops([1, 2, 3, 4, 5, 6] * 3)
    assert not loops([1, 2, 3, 4, 5, 6] * 2)
    ids = torch.tensor([[7] * 12, [*range(12)], [*range(12)]])
    ones = torch.ones(3, 12)
    ended = torch.tensor([True, True, False])
    paths = Trajectories(ids, ones.long(), ids[..., None], ones[..., None], ones.bool(), ended)
    assert usable(paths).tolist() == [False, True, False]


def test_distillation_lowers_its_loss(tokenizer: Tokenizer, data: TextData) -> None:
    teacher, student = small_model(2, tokenizer=tokenizer), small_model(5, tokenizer=tokenizer)
    with torch.no_grad():
        path = obvious_path(teacher, data.layout, data.features.rows([0])[0], BLOCK, 0.05, 24)
    # random weights never end of themselves: a token that they do choose stands in for the end
    stand_in = TextData(data.features, data.reports, ending(data.layout, path[10][0]))
    optimizer = torch.optim.AdamW(student.model.language_model.parameters(), lr=1e-3)
    seen = []
    for _ in range(12):
        loss, figures = dcd_loss(student, teacher, stand_in, [0, 1], BLOCK, Distillation(tau=0.05, top_k=32))
        assert figures["used"] > 0
        loss.backward()  # type: ignore[no-untyped-call]  # torch publishes no type for it
        optimizer.step()
        optimizer.zero_grad()
        seen.append((figures["kl"], figures["eos"]))
    assert seen[-1][0] < 0.7 * seen[0][0]
    assert seen[-1][1] < seen[0][1]


def test_answers_that_cannot_be_used_give_no_gradient(tokenizer: Tokenizer, data: TextData) -> None:
    model = small_model(2, tokenizer=tokenizer)
    endless = TextData(data.features, data.reports, ending(data.layout, data.layout.mask))  # it is never chosen
    loss, figures = dcd_loss(model, model, endless, [0], BLOCK, Distillation(tau=0.05))
    loss.backward()  # type: ignore[no-untyped-call]  # torch publishes no type for it
    assert figures == {"used": 0.0}
    assert all(p.grad is None for p in model.parameters())


def test_the_prefix_alone_is_block_causal() -> None:
    number = torch.arange(16) // 8
    assert torch.equal(rad_mask(16, 0, 8, copies=0), number[None, :] <= number[:, None])


def toml(folder: Path, name: str = "train.toml", **keys: Any) -> Path:
    file = folder / name
    values = {"work": "work", "out": "out", "phantoms": 8, "samples": 4, "batch": 2} | keys
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items() if value is not None))
    return file


@pytest.mark.parametrize(
    ("stage", "keys", "told"),
    [
        ("ar", {"work": None}, "'work' is missing"),
        ("rad", {}, "'init' is missing"),
        ("ar", {"sampels": 3}, "'sampels' is unknown"),
        ("ar", {"samples": "many"}, "'samples' must be a whole number"),
        ("ar", {"samples": 1.5}, "'samples' must be a whole number"),
        ("ar", {"seed": True}, "'seed' must be a whole number"),
        ("ar", {"phantoms": 0}, "'phantoms' must be at least 1"),
        ("ar", {"learning_rate": 0}, "'learning_rate' must be positive"),
        ("ar", {"samples": 1}, "'samples' must be at least the batch"),
        ("ar", {"tau": 0.5}, "'tau' has no meaning for the stage ar"),
        ("dcd", {"init": "x", "tau": 1.5}, "'tau' must lie between"),
        ("dcd", {"init": "x", "canonical": 1.5}, "'canonical' must lie between"),
        ("dcd", {"init": "x", "weighted": 1}, "'weighted' must be true or false"),
        ("rad", {"init": "x", "ce_weight": 1.0}, "'ce_weight' has no meaning"),
        ("rad", {"init": "x", "block_length": 32}, "'block_length' must be at most 16"),
        ("ar", {"out": "."}, "'out'"),
        ("ar", {"init": 3}, "'init' must be a path"),
        ("rad", {"init": "nowhere"}, "nowhere"),
    ],
)
def test_a_wrong_file_names_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, keys: dict[str, Any], told: str
) -> None:
    assert main(["train", stage, "--config", str(toml(tmp_path, **keys))]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_toml_or_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.toml").write_text("work = \n")
    assert main(["train", "ar", "--config", str(tmp_path / "x.toml")]) == 2
    assert "no TOML file" in capsys.readouterr().err
    assert main(["train", "ar", "--config", str(tmp_path / "y.toml")]) == 2
    assert "y.toml" in capsys.readouterr().err


@pytest.fixture
def init(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    write_checkpoint(small_model(spread=0.02, tokenizer=tokenizer), tokenizer, tmp_path / "init")
    (tmp_path / "init" / "domain.safetensors").write_bytes(b"statistics of the tower")
    return tmp_path / "init"


@pytest.fixture(autouse=True)
def phantoms_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight phantoms are drawn sooner than a second interpreter starts."""
    monkeypatch.setattr(Corpus, "start", Corpus.fill)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_goes_from_checkpoint_to_checkpoint(tmp_path: Path, init: Path, stage: StageName) -> None:
    lines: list[str] = []
    train(stage, read_config(toml(tmp_path, init="init"), stage), say=lines.append)
    out = load_model(tmp_path / "out")
    assert out.model_id == f"echo-phantom-{stage}"
    assert out.generation_config["denoising_steps"] == (1 if stage == "dcd" else 8)
    assert (tmp_path / "out" / "domain.safetensors").read_bytes() == b"statistics of the tower"
    before, after = load_file(init / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if "visual" in name]
    # random weights never end an answer, so the teacher of the last stage has nothing to teach here
    assert bool(changed) == (stage != "dcd")
    assert any(line.startswith(stage) for line in lines)
    assert (tmp_path / "work" / f"{stage}.jsonl").is_file()


def test_adapters_leave_a_plain_checkpoint(tmp_path: Path, init: Path) -> None:
    train("rad", read_config(toml(tmp_path, init="init", lora_rank=2), "rad"))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("init", "out"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.endswith("proj.weight") and "visual" not in name for name in changed)


def test_packed_rows_train_as_well(tmp_path: Path, init: Path) -> None:
    train("rad", read_config(toml(tmp_path, init="init", packed_tokens=600), "rad"))
    curve = (tmp_path / "work" / "rad.jsonl").read_text("utf-8")
    assert 0 < json.loads(curve.splitlines()[-1])["loss"] < 20


def test_the_first_stage_can_begin_with_nothing(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        commands, "new_model", lambda tokenizer, seed: small_model(seed, spread=0.02, tokenizer=tokenizer)
    )
    train("ar", read_config(toml(tmp_path, tower_samples=128, phantoms=64), "ar"))
    assert (tmp_path / "work" / "tower.state.pt").is_file()
    assert load_model(tmp_path / "out").model_id == "echo-phantom-ar"


def test_a_run_is_not_overwritten_and_must_stay_the_same(tmp_path: Path, init: Path) -> None:
    def config(**keys: Any) -> TrainConfig:
        return read_config(toml(tmp_path, init="init", **keys), "rad")

    train("rad", config())
    with pytest.raises(TrainConfigError, match=r"'work'.*--resume"):
        train("rad", config(out="out2"))
    with pytest.raises(TrainConfigError, match=r"'learning_rate' was 0\.001"):
        train("rad", config(out="out2", learning_rate=0.01), resume=True)
    train("rad", config(out="out2"), resume=True)  # finished already: nothing is trained again
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "out2"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_cut_off_goes_on_as_if_it_had_not_been(
    tmp_path: Path, init: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(name: str) -> TrainConfig:
        return read_config(toml(tmp_path, init="init", work=f"work-{name}", out=name, samples=8), "rad")

    train("rad", config("whole"))
    entire: Callable[..., None] = train_text

    def cut(*args: Any, **keys: Any) -> None:
        entire(*args, **keys, stop_after=2)
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "train_text", cut)
    with pytest.raises(KeyboardInterrupt):
        train("rad", config("cut"))
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(commands, "train_text", entire)
    train("rad", config("cut"), resume=True)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_model_of_another_shape_is_refused(tmp_path: Path, init: Path) -> None:
    file = init / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_size": 336}))
    with pytest.raises(TrainConfigError, match=r"'init'.*shape"):
        train("rad", read_config(toml(tmp_path, init="init"), "rad"))
