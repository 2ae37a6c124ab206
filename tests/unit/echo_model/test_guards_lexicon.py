"""The lexicon file, how strict it makes itself, the settings, and the commands."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from echo_model import demo_checkpoint_path
from echo_model.cli import main
from echo_model.data.report_texts import phantom_texts
from echo_model.errors import CheckpointError, SettingsError
from echo_model.evaluation.guard_cases import KINDS, inject
from echo_model.guard_settings import GuardSettings
from echo_model.guards import LEXICON_FILE, Lexicon, defects, load_lexicon


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    lexicon = Lexicon.fit(phantom_texts(1, 50))
    lexicon.save(tmp_path / LEXICON_FILE)
    assert load_lexicon(tmp_path) == lexicon
    assert lexicon.knows("Thorax")
    assert not lexicon.knows("banana")


def test_a_folder_without_one_has_none(tmp_path: Path) -> None:
    assert load_lexicon(tmp_path) is None


def test_no_text_makes_no_lexicon() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Lexicon.fit([])


SOUND: dict[str, Any] = {
    "format": "echo-lexicon 1",
    "order_run": 1,
    "spelling": False,
    "symbols": [" a", "."],
    "after": [[1], []],
}


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        json.dumps(SOUND | {"format": "other"}).encode(),
        *(
            json.dumps(SOUND | change).encode()
            for change in (
                {"order_run": 9},
                {"order_run": True},
                {"spelling": 1},
                {"symbols": [" a", 3]},
                {"symbols": [" a", " "]},
                {"symbols": [" a", " a"]},
                {"after": [[1]]},
                {"after": [[1], 2]},
                {"after": [[2], []]},
                {"after": [[-1], []]},
                {"after": [["1"], []]},
            )
        ),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LEXICON_FILE).write_text(json.dumps(SOUND), "utf-8")
    assert load_lexicon(tmp_path) is not None
    (tmp_path / LEXICON_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"lexicon\.json"):
        load_lexicon(tmp_path)


def test_uniform_reports_are_judged_strictly_and_varied_ones_are_not() -> None:
    uniform = Lexicon.fit(["The heart is normal in size. No line."] * 20)
    assert (uniform.order_run, uniform.spelling) == (1, False)
    words = ["heart", "lung", "tube", "line", "hilum", "rib", "node", "vein", "bone", "air"]
    every = [f"The {' '.join(some)}." for some in itertools.permutations(words[:6], 4)]
    mixed = Lexicon.fit(f"{text} case{'x' * number}" for number, text in enumerate(every))
    assert mixed.spelling, "new words are usual here, so only their spelling is judged"
    fit = Lexicon.fit([f"The {one} {other} is." for one in words for other in words if one != other])
    assert fit.order_run == 2, "a pair that was never seen is usual here, two in a row are not"
    assert defects("The bone is.", fit) == defects("The is bone.", replace(fit, order_run=0)) == []
    assert defects("is bone The rib.", fit) != []


def test_spelling_tells_a_possible_word_from_an_impossible_one() -> None:
    lexicon = replace(Lexicon.fit(["Pleural and neural mural cords."]), order_run=0, spelling=True)
    assert defects("Pleural and plural cords.", lexicon) != []
    assert defects("Pleural and ural cords.", replace(lexicon, spelling=False)) != []
    assert defects("Pleural and neural pleural cords.", lexicon) == []
    assert defects("Neural plemural cords.", replace(Lexicon.fit(["lemur ple"]), order_run=0, spelling=True)) != []


def test_the_demo_checkpoint_brings_one_that_fits_held_out_reports() -> None:
    lexicon = load_lexicon(demo_checkpoint_path())
    assert lexicon is not None
    flagged = sum(bool(defects(text, lexicon)) for text in phantom_texts(20_260, 150))
    assert flagged <= 3


def test_injected_defects_are_found() -> None:
    lexicon = load_lexicon(demo_checkpoint_path())
    reports = [text.replace(" ", "| ").split("|") for text in phantom_texts(1, 20)]
    for kind in KINDS:
        cases = inject(kind, reports, 20, 8, seed=3)
        assert cases == inject(kind, reports, 20, 8, seed=3), "the same seed, the same defects"
        assert all(0 <= case.start < case.end <= len(case.text) for case in cases)
        assert sum(bool(defects(case.text, lexicon)) for case in cases) >= 18


@pytest.mark.parametrize(
    "wrong",
    [
        {"gate": 0.0},
        {"gate": 1.5},
        {"gate": float("nan")},
        {"gate": True},
        {"gate": "0.5"},
        {"redenoise": 1},
        {"garble": None},
        {"lexicon": "yes"},
        {"contradiction": 0},
        {"domain": 2},
    ],
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        GuardSettings(**wrong)


def test_all_off() -> None:
    off = GuardSettings.off()
    assert off.gate is None
    assert not any((off.redenoise, off.garble, off.lexicon, off.contradiction, off.domain))
    assert GuardSettings(gate=1) == GuardSettings(gate=1.0)


def test_the_command_makes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lexicon", "--model", str(tmp_path), "--phantoms", "30", "--seed", "4"]) == 0
    assert "from 30 reports" in capsys.readouterr().out
    assert load_lexicon(tmp_path) == Lexicon.fit(phantom_texts(4, 30))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lexicon", "--model", "{tmp}/none", "--phantoms", "3"], "no folder"),
        (["lexicon", "--model", "{tmp}", "--phantoms", "0"], "--phantoms"),
        (["lexicon", "--model", "{tmp}", "--corpus", "{tmp}"], "labels.jsonl"),
        (["lexicon", "--model", "{tmp}", "--corpus", "{tmp}", "--seed", "2"], "--seed"),
        (["guards", "--model", "{tmp}", "--cases", "1"], "--cases"),
        (["guards", "--model", "{tmp}", "--json", "{tmp}/none/x.json"], "does not exist"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    try:
        status = main(arguments)
    except ImportError as error:  # pragma: no cover
        raise AssertionError(str(error)) from error
    assert status == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
