"""`echo-model evaluate --corpus`: a folder as `echo-model phantoms` writes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from echo_model.cli import main
from echo_model.data.export import export_phantoms
from echo_model.data.labels import SIDED
from echo_model.evaluation import evaluate_corpus
from echo_model.evaluation.corpus import read_corpus
from unit.echo_model.tiny_checkpoint import tiny_model, write_checkpoint


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    export_phantoms(tmp_path / "corpus", 3, 9)
    return tmp_path / "corpus"


def test_evaluate_says_the_same_of_phantoms_and_of_their_files(corpus: Path, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "tiny", tiny_model(3))
    results = []
    for material in (["--corpus", str(corpus)], ["--phantoms", "3", "--seed", "9"]):
        arguments = ["evaluate", "--model", str(checkpoint), *material, "--gen-length", "8"]
        assert main([*arguments, "--json", str(tmp_path / "result.json")]) == 0
        results.append(json.loads((tmp_path / "result.json").read_text()))
    wanted = {
        "macro_f1", "micro_f1", "per_finding", "laterality_accuracy", "rouge_l", "cider", "bleu4", "meteor",
        "perplexity", "garbled_rate", "tokens_per_forward", "tokens_per_forward_with_padding", "gated_fraction",
        "redenoised_fraction", "tokens_per_second", "controls", "skipped",
    }  # fmt: skip
    for result in results:
        assert wanted <= result.keys()
        assert result["gated_fraction"] == 0.0
        del result["tokens_per_second"]  # a time
    assert results[1].pop("seed") == 9
    assert results[0] == results[1]


def test_the_texts_can_be_written_out_and_judged(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(tmp_path / "tiny", tiny_model(3))
    out, figures = tmp_path / "reports.jsonl", tmp_path / "figures.json"
    arguments = ["evaluate", "--model", str(checkpoint), "--corpus", str(corpus), "--gen-length", "8"]
    arguments += ["--reports", str(out), "--json", str(figures), "--judge", str(checkpoint)]
    assert main(arguments) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["reference"] for row in rows] == [entry.report for entry in read_corpus(corpus)]
    result = json.loads(figures.read_text())
    assert result["perplexity"] > 1.0
    assert result["tokens_per_forward_with_padding"] >= result["tokens_per_forward"]
    assert set(result["skipped"]) == {"ratescore", "radgraph_f1", "chexbert", "semscore"}
    told = capsys.readouterr().out
    assert "control blank_image: macro F1" in told
    assert "skipped semscore: needs CheXbert's weights (--chexbert DIR)" in told


def test_reports_of_the_labels_are_right_in_everything(corpus: Path) -> None:
    entries = read_corpus(corpus)
    texts = iter([entry.report for entry in entries] + ["Nothing."])
    result = evaluate_corpus(lambda images: [next(texts) for _ in images], entries, batch=2)
    assert result["count"] == 3
    assert result["micro_f1"] == result["exact"] == result["rouge_l"] == 1.0
    assert result["cider"] == pytest.approx(10.0)
    assert result["controls"]["blank_image"]["micro_f1"] == 0.0


def test_findings_of_the_labels_are_what_counts(corpus: Path) -> None:
    labels = corpus / "labels.jsonl"
    rows = [json.loads(line) for line in labels.read_text().splitlines()]
    for row in rows:
        for name, finding in row["findings"].items():
            finding |= {"present": name == "nodule", "side": "left" if name in SIDED else "none"}
    labels.write_text("\n\n".join(json.dumps(row) for row in rows))
    result = evaluate_corpus(lambda images: ["Right nodule."] * len(images), read_corpus(corpus))
    assert result["micro_f1"] == 1.0
    assert result["laterality_accuracy"] == 0.0
    assert result["rouge_l"] < 0.5


def _changed(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: row | fields


def _finding(name: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: row | {"findings": row["findings"] | {name: value}}


def _without_nodule(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"findings": {name: value for name, value in row["findings"].items() if name != "nodule"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: [row], "a JSON object is wanted"),
        (_changed(report=None), '"report" is missing or of the wrong type'),
        (_changed(id=2), '"id" is missing or of the wrong type'),
        (_changed(id="../corpus/00001"), "is no file name"),
        (_changed(id="00000"), "the id of line 1 again"),
        (_changed(id="00009"), "00009.png: no such file"),
        (_changed(findings=[]), '"findings" is missing or of the wrong type'),
        (_without_nodule, "finding 'nodule' is missing"),
        (_finding("scar", {"present": True, "side": "none"}), "finding 'scar' is not known"),
        (_finding("nodule", {"present": 1, "side": "none"}), "finding 'nodule': \"present\" must be"),
        (_finding("nodule", {"present": True, "side": "up"}), "finding 'nodule': \"side\" must be"),
        (_finding("nodule", {"present": True, "side": []}), "finding 'nodule': \"side\" must be"),
        (_finding("nodule", True), "finding 'nodule': \"present\" must be"),
    ],
)
def test_a_wrong_line_is_named(
    corpus: Path, change: Callable[[dict[str, Any]], Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = corpus / "labels.jsonl"
    lines = labels.read_text().splitlines()
    lines[1] = json.dumps(change(json.loads(lines[1])))
    labels.write_text("\n".join(lines))
    assert f"{labels}, line 2: " in (told := _refused(corpus, capsys))
    assert message in told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"id": ', "labels.jsonl, line 1: not JSON"),
        (b"\n\xff\xfe{", "labels.jsonl, line 2: not JSON"),
        (b"[" * 100_000, "labels.jsonl, line 1: not JSON"),
        (b" \n\n", "labels.jsonl: no entry"),
        (None, "labels.jsonl: No such file"),
    ],
)
def test_a_broken_label_file_is_named(
    corpus: Path, content: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is None:
        (corpus / "labels.jsonl").unlink()
    else:
        (corpus / "labels.jsonl").write_bytes(content)
    assert message in _refused(corpus, capsys)


def test_a_broken_image_is_named(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = corpus / "00002.png"
    image.write_bytes(image.read_bytes()[:2000])
    assert f"labels.jsonl, line 3: {image}: damaged" in _refused(corpus, capsys)


def test_wrong_usage(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--seed goes with --phantoms" in _refused(corpus, capsys, "--seed", "1")
    assert "a folder of phantoms has no splits" in _refused(corpus, capsys, "--split", "test")
    assert main(["evaluate", "--model", "/nowhere", "--phantoms", "1", "--split", "test"]) == 2
    assert "--split goes with --corpus" in capsys.readouterr().err
    assert "config.json is missing" in _refused(corpus, capsys, "--chexbert", "/nowhere")
    for arguments in ([], ["--phantoms", "2", "--corpus", str(corpus)]):
        with pytest.raises(SystemExit) as caught:
            main(["evaluate", *arguments])
        assert caught.value.code == 2


def _refused(corpus: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """What is told, in one line and before any model is looked for."""
    assert main(["evaluate", "--model", "/nowhere", "--corpus", str(corpus), *more]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err
