"""Corpora: converters on made-up trees of each layout, filters, split, near-duplicates, validation, readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from echo_model.cli import main
from echo_model.corpora.convert import KEY_VARIABLE, Plan, convert_corpus
from echo_model.corpora.duplicates import hash_file, near_duplicates
from echo_model.corpora.entry import CorpusError, Entry, read_index
from echo_model.corpora.tables import split_report, view_of
from echo_model.corpora.validate import validate_corpus
from echo_model.evaluation.corpus import read_corpus
from unit.echo_model import corpus_trees as trees


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "made-up key")


def _converted(tmp_path: Path, layout: str, build: Callable[[Path], None], plan: Plan | None = None) -> list[Entry]:
    root = tmp_path / "root"
    root.mkdir()
    build(root)
    done = convert_corpus(layout, root, tmp_path / "out", plan or Plan())
    entries, problems = read_index(tmp_path / "out")
    assert problems == []
    assert entries == list(done.entries)
    return entries


def _told(entries: list[Entry]) -> list[tuple[str, str, str]]:
    return [(Path(entry.image).name, entry.view, entry.split) for entry in entries]


def test_mimic_cxr_jpg(tmp_path: Path) -> None:
    entries = _converted(tmp_path, "mimic-cxr-jpg", trees.mimic)
    assert _told(entries) == [
        ("a1.jpg", "frontal", "train"),
        ("a2.jpg", "lateral", "train"),
        ("b1.jpg", "frontal", "test"),
    ]
    assert entries[0].image == "files/p10/p10000001/s50000001/a1.jpg"
    assert entries[0].sections == {
        "indication": "Cough.",
        "findings": "The heart is enlarged. There is no pleural effusion.",
        "impression": "Cardiomegaly.",
    }
    assert entries[2].report == "Findings: Left pneumothorax, large."
    assert entries[0].patient == entries[1].patient != entries[2].patient
    assert entries[0].study == entries[1].study
    about = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert about["left_out"] == {"body_part": 1}
    whole = (tmp_path / "out" / "index.jsonl").read_text()
    assert '"10000001"' not in whole


def test_chexpert_plus(tmp_path: Path) -> None:
    entries = _converted(tmp_path, "chexpert-plus", trees.chexpert)
    assert [(entry.view, entry.split) for entry in entries] == [
        ("frontal", "train"), ("lateral", "train"), ("frontal", "validate"),
    ]  # fmt: skip
    assert entries[1].image == "PNG/train/patient00001/study1/view2_lateral.png"
    assert entries[0].sections == {"history": "Pain.", "impression": "Small left effusion."}
    assert entries[2].report == "Findings: Clear lungs. Impression: Normal."


def test_rexgradient(tmp_path: Path) -> None:
    entries = _converted(tmp_path, "rexgradient", trees.rexgradient)
    assert sorted((entry.image, entry.view, entry.split) for entry in entries) == [
        ("deid_png/P1/a.png", "frontal", "train"),
        ("deid_png/P1/b.png", "lateral", "train"),
        ("deid_png/P4/a.png", "frontal", "test"),
    ]
    about = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert about["left_out"] == {"modality": 1}
    assert {entry.report for entry in entries if entry.split == "test"} == {"Findings: Clear lungs."}


def test_iu_xray(tmp_path: Path) -> None:
    root = tmp_path / "root"
    trees.iu(root)
    done = convert_corpus("iu-xray", root, tmp_path / "out", Plan())
    assert [(entry.view, entry.report) for entry in done.entries] == [
        ("frontal", "Findings: Clear lungs. Impression: Normal."),
        ("lateral", "Findings: Clear lungs. Impression: Normal."),
        ("frontal", "Impression: Cardiomegaly."),
    ]
    assert [str(problem) for problem in done.problems] == [
        "indiana_projections.csv, line 5: error no_report: no line of indiana_reports.csv has this uid"
    ]


def test_csv_of_ones_own(tmp_path: Path) -> None:
    rows = [
        {
            "report": "FINDINGS: Left effusion.\nIMPRESSION: Effusion.",
            "findings": "",
            "view": "PA",
            "split": "val",
            "patient": "7",
        },
        {"report": "", "findings": "Clear lungs.", "view": "", "split": "", "patient": "7"},
        {"report": "Right nodule.", "findings": "", "view": "LL", "split": "", "patient": ""},
    ]
    entries = _converted(tmp_path, "csv", lambda root: trees.plain(root, rows))
    assert [entry.view for entry in entries] == ["frontal", "unknown", "lateral"]
    assert [entry.split for entry in entries[:2]] == ["validate", "validate"]
    assert entries[0].sections == {"findings": "Left effusion.", "impression": "Effusion."}
    assert entries[2].report == "Findings: Right nodule."


def test_only_wanted_views_are_kept(tmp_path: Path) -> None:
    entries = _converted(tmp_path, "mimic-cxr-jpg", trees.mimic, Plan(views=("frontal",)))
    assert {entry.view for entry in entries} == {"frontal"}


def test_a_patient_is_never_in_two_splits(tmp_path: Path) -> None:
    rows = [{"report": f"Nodule {n}.", "patient": str(n // 4), "split": ("train", "test")[n % 2]} for n in range(8)]
    root = tmp_path / "root"
    trees.plain(root, rows)
    done = convert_corpus("csv", root, tmp_path / "out", Plan())
    assert {entry.split for entry in done.entries} == {"test"}
    assert [problem.code for problem in done.problems] == ["patient_in_two_splits"] * 2


def test_the_split_follows_patient_and_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"report": "Left nodule.", "patient": str(n // 2)} for n in range(120)]
    root = tmp_path / "root"
    trees.plain(root, rows)
    plan = Plan(shares=(0.6, 0.2, 0.2), look_at_images=False)
    first = convert_corpus("csv", root, tmp_path / "a", plan).entries
    monkeypatch.setenv(KEY_VARIABLE, "another key")
    second = convert_corpus("csv", root, tmp_path / "b", plan).entries
    assert [entry.split for entry in first] == [entry.split for entry in second]
    assert {entry.patient for entry in first}.isdisjoint(entry.patient for entry in second)
    shares = [sum(entry.split == name for entry in first) / 120 for name in ("train", "validate", "test")]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.15)
    other = convert_corpus("csv", root, tmp_path / "c", Plan(shares=(0.6, 0.2, 0.2), look_at_images=False, seed=1))
    assert [entry.split for entry in other.entries] != [entry.split for entry in first]


def test_near_duplicates_are_left_out(tmp_path: Path) -> None:
    text = "The heart is enlarged and there is a small left pleural effusion without a pneumothorax"
    rows = [{"report": f"{text}."}, {"report": f"{text}!"}, {"report": "Clear lungs."}, {"report": f"{text}."}]
    root = tmp_path / "root"
    trees.plain(root, rows)
    original = Image.open(root / "0.png")
    original.resize((160, 160)).save(root / "1.png")  # the same picture, scaled: left out
    original.save(root / "2.png")  # the same picture, another report: kept; 3: another picture, the same report: kept
    done = convert_corpus("csv", root, tmp_path / "out", Plan())
    assert [entry.image for entry in done.entries] == ["0.png", "2.png", "3.png"]
    assert done.left_out == {"near_duplicate": 1}


def test_hashes_survive_saving_and_tell_pictures_apart(tmp_path: Path) -> None:
    trees.picture(tmp_path / "a.png", 1)
    trees.picture(tmp_path / "b.png", 2)
    Image.open(tmp_path / "a.png").save(tmp_path / "a.jpg", quality=60)
    one, again, other = (hash_file(tmp_path / name) for name in ("a.png", "a.jpg", "b.png"))
    assert (one ^ again).bit_count() <= 12 < (one ^ other).bit_count()
    assert near_duplicates([one, other, again], ["a b c d", "a b c d", "a b c d"]) == {2: 0}
    assert near_duplicates([one, again], ["a b c d", "w x y z"]) == {}


@pytest.mark.parametrize(
    ("position", "view"),
    [("PA", "frontal"), ("AP", "frontal"), ("POSTERO_ANTERIOR", "frontal"), ("LATERAL", "lateral"), ("LL", "lateral"),
     ("Frontal", "frontal"), ("left lateral decubitus", "lateral"), ("", "unknown"), ("OBLIQUE", "unknown")],
)  # fmt: skip
def test_view_of(position: str, view: str) -> None:
    assert view_of(position) == view


def test_split_report() -> None:
    text = "WET READ: x\nFINDINGS AND IMPRESSION: Left effusion.\n\nRECOMMENDATION: Film."
    assert split_report(text) == {"findings": "Left effusion."}
    one_line = "FINDINGS: Left effusion. Findings were told. IMPRESSION: Effusion."
    assert split_report(one_line) == {"findings": "Left effusion. Findings were told.", "impression": "Effusion."}
    assert split_report("Just a sentence.") == {"findings": "Just a sentence."}
    assert split_report("") == {}


@pytest.mark.parametrize("layout", ["mimic-cxr-jpg", "chexpert-plus", "rexgradient", "iu-xray", "csv"])
def test_a_folder_of_another_layout_is_refused(tmp_path: Path, layout: str) -> None:
    with pytest.raises(CorpusError):
        convert_corpus(layout, tmp_path, tmp_path / "out", Plan())


def test_missing_columns_are_named(tmp_path: Path) -> None:
    trees.table(tmp_path / "corpus.csv", [{"picture": "x.png"}])
    with pytest.raises(CorpusError, match="column 'image' is missing"):
        convert_corpus("csv", tmp_path, tmp_path / "out", Plan())


def _corpus(tmp_path: Path) -> Path:
    rows = [
        {"report": text, "patient": str(n)}
        for n, text in enumerate(["Left effusion.", "Right nodule.", "Clear lungs."])
    ]
    root = tmp_path / "root"
    trees.plain(root, rows)
    convert_corpus("csv", root, tmp_path / "out", Plan())
    return tmp_path / "out"


def _changed(corpus: Path, number: int, change: Callable[[dict[str, Any]], Any]) -> None:
    index = corpus / "index.jsonl"
    lines = index.read_text().splitlines()
    changed = change(json.loads(lines[number - 1]))
    lines[number - 1] = changed if isinstance(changed, str) else json.dumps(changed)
    index.write_text("\n".join(lines) + "\n")


def test_a_sound_corpus_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = _corpus(tmp_path)
    assert main(["corpus", "validate", str(corpus)]) == 0
    assert capsys.readouterr().out == (
        "index.jsonl, line 1: warning short_text: 2 words\nindex.jsonl, line 2: warning short_text: 2 words\n"
        "index.jsonl, line 3: warning short_text: 2 words\n3 lines read, 0 errors, 3 warnings\n"
    )


@pytest.mark.parametrize(
    ("change", "code", "is_error"),
    [
        (lambda row: '{"id": ', "bad_line", True),
        (lambda row: [row], "bad_line", True),
        (lambda row: row | {"view": "oblique"}, "bad_line", True),
        (lambda row: row | {"split": "dev"}, "bad_line", True),
        (lambda row: row | {"image": "../x.png"}, "bad_line", True),
        (lambda row: row | {"sections": {"summary": "x"}}, "bad_line", True),
        (lambda row: row | {"name": "x"}, "bad_line", True),
        (lambda row: row | {"patient": ""}, "bad_line", True),
        (lambda row: row | {"id": "csv-0000001"}, "repeated_id", True),
        (lambda row: row | {"image": "nothing.png"}, "bad_image", True),
        (lambda row: row | {"sections": {}}, "no_text", True),
        (lambda row: row | {"normalised": {"findings": "Clear lungs.", "impression": ""}}, "normalised_differs", True),
        (lambda row: row | {"sections": {"findings": "word " * 600}}, "long_text", False),
        (lambda row: row | {"sections": {"findings": "右肺结节，左侧胸腔积液。"}}, "not_english", False),
        (lambda row: row | {"sections": {"findings": "Right nodule, seen on 3/4/2019."}}, "identifier", False),
        (lambda row: row | {"sections": {"findings": "Nothing to say here."}}, "no_finding", False),
    ],
)
def test_what_is_wrong_with_a_line_is_told(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], code: str, is_error: bool
) -> None:
    corpus = _corpus(tmp_path)
    _changed(corpus, 2, change)
    _, problems = validate_corpus(corpus)
    told = [problem for problem in problems if problem.where == "index.jsonl, line 2" and problem.code == code]
    assert [problem.is_error for problem in told] == [is_error], problems


def test_a_patient_in_two_splits_is_told(tmp_path: Path) -> None:
    corpus = _corpus(tmp_path)
    patient = read_index(corpus)[0][0].patient
    for number, split in ((1, "train"), (2, "test")):
        _changed(corpus, number, lambda row, split=split: row | {"patient": patient, "split": split})
    problems = [str(problem) for problem in validate_corpus(corpus)[1] if problem.is_error]
    assert problems == ["index.jsonl, line 2: error patient_in_two_splits: test here, train in index.jsonl, line 1"]


def test_images_are_looked_at(tmp_path: Path) -> None:
    corpus, root = _corpus(tmp_path), tmp_path / "root"
    Image.new("L", (100, 300), 7).save(root / "0.png")
    Image.new("RGB", (200, 200), (200, 20, 20)).save(root / "1.png")
    (root / "2.png").write_bytes(b"no picture")
    codes = {(problem.where[-1], problem.code) for problem in validate_corpus(corpus)[1]}
    assert {
        ("1", "small_image"),
        ("1", "odd_shape"),
        ("1", "blank_image"),
        ("2", "colour"),
        ("3", "bad_image"),
    } <= codes
    assert {code for _, code in codes} >= {"bad_image"}
    assert not [problem for problem in validate_corpus(corpus, look_at_images=False)[1] if problem.is_error]


def test_the_command_line_converts_normalises_and_validates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    trees.mimic(root)
    out, new = tmp_path / "out", tmp_path / "new"
    assert main(["corpus", "convert", "mimic-cxr-jpg", str(root), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "mimic-cxr-2.0.0-metadata.csv.gz, line 6: error no_report" in told
    assert "3 images: 2 train, 0 validate, 1 test" in told
    assert main(["corpus", "normalise", str(out), "--out", str(new)]) == 0
    assert "3 reports: 3 by the rules" in capsys.readouterr().out
    entries, _ = read_index(new)
    assert entries[2].report.startswith("Findings: The thorax is symmetric.")
    assert main(["corpus", "validate", str(new), "--json", str(tmp_path / "problems.jsonl")]) == 0
    report = tmp_path / "problems.jsonl"
    assert all(json.loads(line)["error"] is False for line in report.read_text().splitlines())


@pytest.mark.parametrize(
    "arguments",
    [["--views", "oblique"], ["--shares", "1,1,1"], ["--shares", "a"], ["--seed", "0", "--views", "lateral,x"]],
)
def test_wrong_usage_is_told_in_one_line(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["corpus", "convert", "csv", str(tmp_path), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_endpoint_needs_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = _corpus(tmp_path)
    arguments = ["corpus", "normalise", str(corpus), "--out", str(tmp_path / "new"), "--endpoint", "http://127.0.0.1:9"]
    assert main(arguments) == 2
    assert "--endpoint needs --chat-model" in capsys.readouterr().err


def test_evaluation_reads_a_corpus(tmp_path: Path) -> None:
    corpus = _corpus(tmp_path)
    entries = read_corpus(corpus)
    assert [entry.image.name for entry in entries] == ["0.png", "1.png", "2.png"]
    assert entries[0].findings["pleural_effusion"].side == "left"
    assert not entries[2].findings["nodule"].present
    split = read_index(corpus)[0][0].split
    assert 1 <= len(read_corpus(corpus, split)) <= 3
    with pytest.raises(CorpusError, match="no entry of the split 'dev'"):
        read_corpus(corpus, "dev")
