"""The benchmark: every loop decodes what it says it does, and the figures follow from the timings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from echo_model import bench as bench_module
from echo_model.bench import bench, table
from echo_model.bench_floor import Limits, Work, decode_work, measure
from echo_model.bench_loops import BlockDiffusion, OwnAutoregressive, Timing, autoregressive, plain_loop
from echo_model.bench_rows import Row, Subject, all_rows, rules
from echo_model.cli import main
from echo_model.errors import SettingsError
from echo_model.text_model import TextModel
from unit.echo_model.tiny_checkpoint import IM_END, IMAGE_PAD, MASK, VOCABULARY, tiny_model

LIMITS = Limits(bandwidth=1e9, peak=1e10)
RATIOS = {"fused_over_unfused", "one_step_over_ar", "one_step_over_own_ar", "batch8_over_1", "over_plain_loop"}


@pytest.fixture(scope="module")
def small() -> Subject:
    """A model whose answers vary, a prompt of 24 tokens with a picture."""
    model = tiny_model(5)
    torch.manual_seed(1)
    ids = torch.cat([torch.randint(6, 200, (9,)), torch.full((4,), IMAGE_PAD), torch.randint(6, 200, (11,))])
    return Subject.of(model, ids, torch.randn(16, 3 * 2 * 14 * 14), torch.tensor([[1, 4, 4]]), MASK, 32)


def decode(what: Subject, **settings: Any) -> Timing:
    return BlockDiffusion(TextModel(what.model), what.prompt, rules(what, 8, **settings)).decode()


def test_the_plain_loop_decodes_what_the_library_decodes(small: Subject) -> None:
    own = decode(small)
    plain = plain_loop(small.model, small.prompt, rules(small, 8))
    assert plain.token_ids == own.token_ids
    assert len(set(own.token_ids)) > 2
    assert plain.forward_passes == own.forward_passes == 4


def test_the_plain_loop_stops_at_an_end_token_and_wants_the_grid(small: Subject) -> None:
    from dataclasses import replace

    tokens = decode(small).token_ids
    stopped = plain_loop(small.model, small.prompt, replace(rules(small, 8), eos_token_ids=(tokens[3],)))
    assert stopped.forward_passes == 1
    with pytest.raises(ValueError, match="no multiple"):
        plain_loop(small.model, small.prompt, rules(small, 16))


def test_decoding_again_and_whole_studies_give_the_same_tokens(small: Subject) -> None:
    """Rounds after the first reuse the prompt in the cache."""
    loop = BlockDiffusion(TextModel(small.model), small.prompt, rules(small, 8), 3)
    first, again, whole, last = loop.decode(), loop.decode(), loop.end_to_end(small.prepare), loop.decode()
    assert first.token_ids == again.token_ids == whole.token_ids == last.token_ids
    assert sorted(first.token_ids) == sorted(3 * decode(small).token_ids)
    assert first.forward_passes == again.forward_passes == 4
    assert 0 < whole.prompt_seconds < whole.seconds


def test_left_to_right_decoding_is_that_of_the_stock_model_without_a_cache(small: Subject) -> None:
    decoded = autoregressive(small.model, small.prompt, 6, MASK).token_ids
    language, embeds = small.model.model.language_model, small.prompt.embeds
    wanted = []
    with torch.no_grad():
        for _ in range(7):
            more = torch.arange(small.prompt.length, embeds.shape[1]) + small.prompt.rope_delta
            positions = torch.cat([small.prompt.positions, more.expand(3, 1, -1)], dim=2)
            causal = torch.ones(embeds.shape[1], embeds.shape[1], dtype=torch.bool).tril()[None, None]
            mask = {"full_attention": causal}
            states = language(inputs_embeds=embeds, position_ids=positions, attention_mask=mask).last_hidden_state
            logits = small.model.lm_head(states[0, -1])
            logits[MASK] = -torch.inf
            wanted.append(int(logits.argmax()))
            embeds = torch.cat([embeds, language.embed_tokens(logits.argmax().reshape(1, 1))], dim=1)
    assert decoded == wanted[1:]


def test_own_left_to_right_decoding_writes_the_same_in_every_round(small: Subject) -> None:
    own = OwnAutoregressive(TextModel(small.model), small.prompt, 12, MASK)
    wanted = autoregressive(small.model, small.prompt, 12, MASK).token_ids
    assert own.decode().token_ids == own.decode().token_ids == wanted
    assert len(set(wanted)) > 2


def test_every_row_decodes_the_same_number_of_tokens(small: Subject) -> None:
    """Even where the model's end token comes up: it is switched off."""
    rows = {(row.name, row.batch): row for row in all_rows(small, (8, 16), (1, 2))}
    runs = {key: row.run() for key, row in rows.items()}
    for key, run in runs.items():
        assert len(run.token_ids) == (32 * key[1] if rows[key].kind in ("decode", "end to end") else 0), key
    passes = {name: run.forward_passes for (name, batch), run in runs.items() if batch == 1}
    assert (
        passes["Hugging Face autoregressive"] == passes["own autoregressive"] == passes["Hugging Face generate"] == 32
    )
    assert passes["fused block 8"] == passes["end to end"] == passes["plain loop block 8"] == 4
    assert passes["unfused block 8"] == 7
    assert passes["fused block 16"] == 3  # the prompt ends inside a block of 16
    assert runs["fused block 8", 2].forward_passes == 4
    assert IM_END != VOCABULARY


def test_the_floor_counts_weights_keys_and_products(small: Subject) -> None:
    layers = sum(p.numel() for p in small.model.model.language_model.layers.parameters())
    head = small.model.lm_head.weight.numel()
    one = decode_work(small.model, 1, 16, 8, context=40)
    # 2 layers, keys and values, 2 heads of 16; attention reads both, with 2 operations a product
    assert one.bytes == 4 * (layers + head + 40 * 2 * 2 * 2 * 16)
    assert one.operations == 16 * (2 * layers + 40 * 2 * 4 * 64) + 8 * 2 * head
    assert Limits(1e9, 1e12).floor(Work(3e6, 1e9)) == {"ms": 3.0, "bound": "memory", "nominal_ms": None}
    bound = Limits(1e9, 1e10, (1e12, 1e12)).floor(Work(3e6, 5e7))
    assert (bound["ms"], bound["bound"], bound["nominal_ms"]) == (5.0, "compute", 0.05)
    assert min(measure(torch.device("cpu"), torch.float32).to_json()["bandwidth_gb_s"], 1e9) > 0.01


def timed(name: str, seconds: list[float] | None = None, **of_row: Any) -> Row:
    """A row of 32 tokens in 4 passes whose warm-up and rounds take the given times."""
    times: Iterator[float] = iter(seconds or [4.0] * 9)
    return Row(name, "decode", lambda: Timing(next(times), 4, [7] * 32), Work(4e6, 1e7), 8, **of_row)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, small: Subject) -> Callable[[list[Row]], None]:
    """Lets `bench` measure the given rows, on a machine of round figures."""

    def use(rows: list[Row]) -> None:
        monkeypatch.setattr(bench_module, "subject", lambda *_: small)
        monkeypatch.setattr(bench_module, "all_rows", lambda *_: rows)
        monkeypatch.setattr(bench_module, "measure", lambda *_: LIMITS)

    return use


def test_ratios_and_spread_come_from_the_rounds(made_up: Callable[[list[Row]], None]) -> None:
    made_up(
        [
            timed("fused block 8", [9.0, 1.0, 2.0, 4.0]),
            timed("Hugging Face autoregressive", [9.0, 10.0, 10.0, 10.0]),
            timed("unfused block 8"),
        ]
    )
    result = bench("tiny", repeats=3)
    assert result["complete"]
    assert result["ratios"]["one_step_over_ar"] == {"median": 5.0, "min": 2.5, "max": 10.0}
    assert result["ratios"]["fused_over_unfused"] == {"median": 2.0, "min": 1.0, "max": 4.0}
    assert result["ratios"]["over_plain_loop"] is None
    row = result["rows"][0]
    assert row["tokens_per_second"] == {"median": 16.0, "min": 8.0, "max": 32.0}
    assert row["ms_per_forward"]["median"] == pytest.approx(500.0)
    assert row["tokens_per_forward"] == 8.0
    assert row["floor"]["of_floor"] == pytest.approx(4.0 / 500.0)
    assert "not measured" in table(result)


def test_what_fails_or_has_no_time_is_left_out_with_the_reason(
    made_up: Callable[[list[Row]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(bench_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def row(name: str, seconds: float, **of_row: Any) -> Row:
        def run() -> Timing:
            clock[0] += seconds
            return Timing(seconds, 4, [7] * 32)

        return Row(name, "decode", run, None, 8, **of_row)

    def broken() -> Timing:
        raise ValueError("no memory")

    made_up(
        [
            row("fused block 8", 1.0, needed=True),
            row("costly", 30.0),
            row("cheap", 2.0),
            Row("broken", "decode", broken),
            row("long", 20.0),
            row("too late", 1.0),
            row("unfused block 8", 1.0, needed=True),
        ]
    )
    kept: list[dict[str, Any]] = []
    result = bench("tiny", repeats=5, limit_seconds=100.0, keep=kept.append)
    assert [measured["variant"] for measured in result["rows"]] == ["fused block 8", "cheap", "unfused block 8"]
    reasons = {left["variant"]: left["reason"] for left in result["skipped"]}
    assert reasons["broken"] == "failed: ValueError: no memory"
    assert reasons["too late"] == "no time left"
    assert "did not fit" in reasons["costly"]
    assert "did not fit" in reasons["long"]
    assert result["complete"]
    assert clock[0] <= 100.0
    assert not kept[-2]["complete"]
    assert kept[-2]["rows"][0]["variant"] == "fused block 8"  # a killed bench leaves what it had
    assert kept[-1] == result


def test_when_time_is_short_there_are_fewer_rounds(
    made_up: Callable[[list[Row]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(bench_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def run() -> Timing:
        clock[0] += 10.0
        return Timing(10.0, 4, [7] * 32)

    made_up([Row("fused block 8", "decode", run, None, 8, needed=True)])
    result = bench("tiny", repeats=5, limit_seconds=35.0)
    assert result["repeats"] == 2
    assert not result["complete"]


def test_the_command_writes_figures_a_picture_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows and code paths of the large shapes, on the tiny one."""
    file, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ["bench", "--shape", "tiny", "--tokens", "16", "--repeats", "1", "--blocks", "8", "--batches", "1,8"]
    assert main([*arguments, "--json", str(file), "--png", str(picture)]) == 0
    result = json.loads(file.read_text())
    assert result["complete"]
    assert result["skipped"] == []
    assert result["ratios"].keys() == RATIOS
    assert all(0 < ratio["min"] <= ratio["median"] <= ratio["max"] for ratio in result["ratios"].values())
    assert result["machine"]
    assert result["versions"].keys() == {"torch", "transformers"}
    assert {row["kind"] for row in result["rows"]} == {"decode", "end to end", "vision", "prefill"}
    for row in result["rows"]:
        figure = row["studies_per_second" if row["kind"] == "end to end" else "ms_per_forward"]
        assert 0 < figure["min"] <= figure["median"] <= figure["max"]
        assert row["memory_bytes"] is None
        assert row["kind"] == "end to end" or row["floor"]["ms"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "Hugging Face autoregressive" in out
    assert "one_step_over_ar" in out


@pytest.mark.parametrize("name", ["3b", "7b"])
def test_large_shapes_are_refused_on_a_processor(name: str) -> None:
    with pytest.raises(SettingsError, match="CUDA"):
        bench(name)


def test_wrong_settings_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--shape", "tiny", "--dtype", "int3"]) == 2
    assert "int3" in capsys.readouterr().err
    assert main(["bench", "--json", str(tmp_path / "no" / "x.json")]) == 2
    assert "folder does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "--blocks", "8,none"])
