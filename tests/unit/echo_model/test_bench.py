"""The benchmark: every loop decodes what it says it does, and the figures follow from the timings."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from echo_model import bench as bench_module
from echo_model.bench import Subject, bench, table, variants
from echo_model.bench_loops import Timing, autoregressive, block_diffusion, plain_loop
from echo_model.cli import main
from echo_model.decoding import prepare_prompt
from echo_model.errors import SettingsError
from echo_model.text_model import TextModel
from echo_model.unmasking import DecodingRules
from unit.echo_model.tiny_checkpoint import IM_END, IMAGE_PAD, MASK, VOCABULARY, tiny_model


@pytest.fixture(scope="module")
def small() -> Subject:
    """A model whose answers vary, a prompt of 24 tokens with a picture."""
    model = tiny_model(3)
    torch.manual_seed(1)
    ids = torch.cat([torch.randint(6, 200, (9,)), torch.full((4,), IMAGE_PAD), torch.randint(6, 200, (11,))])
    prompt = prepare_prompt(model, ids, torch.randn(16, 3 * 2 * 14 * 14), torch.tensor([[1, 4, 4]]))
    return Subject(model, prompt, MASK, tokens=32)


def rules(block: int = 8, end: int = VOCABULARY) -> DecodingRules:
    return DecodingRules(MASK, (end,), block, 32)


def test_the_plain_loop_decodes_what_the_library_decodes(small: Subject) -> None:
    own = block_diffusion(TextModel(small.model), [small.prompt], rules())
    plain = plain_loop(small.model, small.prompt, rules())
    assert plain.token_ids == own.token_ids
    assert len(set(own.token_ids)) > 4
    assert plain.forward_passes == own.forward_passes == 4


def test_the_plain_loop_stops_at_an_end_token_and_wants_the_grid(small: Subject) -> None:
    tokens = block_diffusion(TextModel(small.model), [small.prompt], rules()).token_ids
    stopped = plain_loop(small.model, small.prompt, rules(end=tokens[3]))
    assert stopped.forward_passes == 1
    with pytest.raises(ValueError, match="no multiple"):
        plain_loop(small.model, small.prompt, rules(block=16))


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


def test_every_variant_decodes_the_same_number_of_tokens(small: Subject) -> None:
    """Even where the model's end token comes up: it is switched off."""
    rows = {name: (block, run()) for name, (block, run) in variants(small).items()}
    assert {len(timing.token_ids) for _, timing in rows.values()} == {32}
    assert rows["autoregressive"][1].forward_passes == 32
    assert rows["fused block 8"][1].forward_passes == 4
    assert rows["unfused block 8"][1].forward_passes == 7
    assert rows["fused block 16"][1].forward_passes == 3  # the prompt ends inside a block of 16
    assert IM_END != VOCABULARY


def test_ratios_and_spread_come_from_the_rounds(monkeypatch: pytest.MonkeyPatch, small: Subject) -> None:
    seconds = {"fused block 8": iter([9.0, 1.0, 2.0, 4.0]), "autoregressive": iter([9.0, 10.0, 10.0, 10.0])}

    def timed(name: str) -> Any:
        return lambda: Timing(0.5, next(seconds[name]) if name in seconds else 4.0, 4, [7] * 32)

    names = {"fused block 8": 8, "unfused block 8": 8, "autoregressive": 1}
    monkeypatch.setattr(bench_module, "subject", lambda *_: small)
    monkeypatch.setattr(bench_module, "variants", lambda _: {n: (block, timed(n)) for n, block in names.items()})
    result = bench("tiny", repeats=3)
    assert result["ratios"]["one_step_over_ar"] == {"median": 5.0, "min": 2.5, "max": 10.0}
    assert result["ratios"]["fused_over_unfused"] == {"median": 2.0, "min": 1.0, "max": 4.0}
    assert result["ratios"]["over_plain_loop"] is None
    row = result["rows"][0]
    assert row["tokens_per_second"] == {"median": 16.0, "min": 8.0, "max": 32.0}
    assert row["ms_per_forward"]["median"] == pytest.approx(500.0)
    assert row["tokens_per_forward"] == 8.0
    assert "not measured" in table(result)


def test_the_command_writes_figures_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    arguments = ["bench", "--shape", "tiny", "--tokens", "16", "--repeats", "2", "--json", str(file)]
    assert main(arguments) == 0
    result = json.loads(file.read_text())
    assert {"fused_over_unfused", "one_step_over_ar", "batch8_over_1", "over_plain_loop"} == result["ratios"].keys()
    for name in ("fused_over_unfused", "one_step_over_ar", "over_plain_loop"):
        ratio = result["ratios"][name]
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    assert result["ratios"]["batch8_over_1"] is None
    assert "one report at a time" in result["notes"]["batch8_over_1"]
    assert result["machine"]
    assert result["versions"].keys() == {"torch", "transformers"}
    speeds = [row["tokens_per_second"] for row in result["rows"]]
    assert all(speed["min"] <= statistics.median(speed.values()) <= speed["max"] for speed in speeds)
    out = capsys.readouterr().out
    assert "autoregressive" in out
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
