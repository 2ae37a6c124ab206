from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from echo_model.cli import main
from unit.echo_model.tiny_checkpoint import tiny_model, write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("cli") / "tiny", tiny_model(3))


@pytest.fixture
def films(tmp_path: Path) -> list[str]:
    grey = np.random.default_rng(0).integers(0, 256, (60, 50), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", grey.astype(np.float32))
    return [str(tmp_path / "a.png"), str(tmp_path / "b.npy")]


def test_generate_writes_one_json_object_an_image(
    checkpoint: Path, films: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--model", str(checkpoint), *films, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["images"] for row in rows] == [[films[0]], [films[1]]]
    for row in rows:
        assert {"findings", "impression", "sentences", "flags", "stats"} <= row.keys()
        assert row["stats"]["forward_passes"] > 0
        assert row["stats"]["tokens_per_forward"] > 1


def test_generate_writes_text_for_people(
    checkpoint: Path, films: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--model", str(checkpoint), "--study", *films, "--gen-length", "8"]) == 0
    out = capsys.readouterr().out
    assert out.count("# ") == 1
    assert "flags: missing_findings, missing_impression" in out
    assert "8 tokens in" in out


def test_inspect(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(checkpoint), "--tensors"]) == 0
    out = capsys.readouterr().out
    assert "parameters: " in out
    assert "key_value_heads: 2" in out
    assert "model.language_model.norm.weight F32 (64,)" in out
    assert main(["inspect", str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["generation"]["mask_token_id"] == 5


def test_wrong_input_is_one_line_and_status_2(
    checkpoint: Path, films: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    model = ["--model", str(checkpoint)]
    for arguments, message in [
        (["generate", *model, str(tmp_path / "absent.png")], "no such file"),
        (["generate", *model, str(tmp_path / "text.png")], "no PNG or JPEG file"),
        (["generate", "--model", str(tmp_path), films[0]], "config.json is missing"),
        (["generate", "--model", "/nowhere", films[0]], "no folder"),
        (["generate", *model, films[0], "--block-length", "2", "--denoising-steps", "3"], "denoising_steps"),
        (["generate", *model, films[0], "--dtype", "float3"], "float3"),
        (["inspect", str(tmp_path)], "config.json is missing"),
    ]:
        assert main(arguments) == 2, arguments
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert message in captured.err


@pytest.mark.parametrize("arguments", [[], ["paint"], ["generate"], ["generate", "a.png", "--gen-length", "0"]])
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_phantoms_are_written_and_the_same_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        assert main(["phantoms", "--out", str(tmp_path / name), "--count", "2", "--seed", "4"]) == 0
    assert "2 phantoms" in capsys.readouterr().out
    for file in ("00000.png", "00001.png", "labels.jsonl"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    row = json.loads((tmp_path / "one" / "labels.jsonl").read_text().splitlines()[1])
    assert {"id", "findings", "report", "raw_report"} <= row.keys()
    (tmp_path / "file").write_text("")
    assert main(["phantoms", "--out", str(tmp_path / "file"), "--count", "1"]) == 2


def test_evaluate_measures_a_model_on_phantoms(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "result.json"
    arguments = ["evaluate", "--model", str(checkpoint), "--phantoms", "3", "--seed", "9", "--gen-length", "8"]
    assert main([*arguments, "--denoising-steps", "2", "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    wanted = {"macro_f1", "micro_f1", "per_finding", "laterality_accuracy", "garbled_rate", "tokens_per_second"}
    assert wanted <= result.keys()
    assert result["count"] == 3
    assert result["macro_f1"] == 0.0, "random weights know nothing"
    assert result["settings"]["denoising_steps"] == 2
    assert 1.0 <= result["tokens_per_forward"] <= 4.0
    assert "macro_f1" in capsys.readouterr().out
    assert main([*arguments, "--json", str(tmp_path / "absent" / "result.json")]) == 2
