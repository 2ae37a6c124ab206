"""scripts/dicom_corpus.py: DICOM files and a table of reports become a corpus that can be trained on."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

from pydicom import dcmread

from echo_model.corpora.convert import Plan, convert_corpus
from echo_model.data.dicom import write_phantom
from echo_model.data.phantoms import generate_phantom
from servers import env

SCRIPT = env.REPOSITORY / "scripts" / "dicom_corpus.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_files_and_reports_become_a_corpus(tmp_path: Path) -> None:
    raw = tmp_path / "raw" / "deep"
    raw.mkdir(parents=True)
    studies = []
    for number in range(3):
        write_phantom(generate_phantom(5, number), raw / f"{number}.dcm")
        studies.append(str(dcmread(raw / f"{number}.dcm").StudyInstanceUID))
    (raw / "notes.txt").write_text("no DICOM file")
    with (tmp_path / "reports.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerows([["study", "report"], *([study, f"No finding, study {study[-6:]}."] for study in studies[:2])])
    done = run(tmp_path / "raw", tmp_path / "reports.csv", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "2 pictures" in done.stdout
    assert "1 no_report, 1 not_dicom" in done.stdout
    made = convert_corpus("csv", tmp_path / "out", tmp_path / "corpus", Plan())
    assert not made.problems
    assert [entry.view for entry in made.entries] == ["frontal", "frontal"]
    assert "No finding" in made.entries[0].report


def test_a_table_without_the_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "reports.csv").write_text("id,text\n1,none\n")
    done = run(tmp_path, tmp_path / "reports.csv", tmp_path / "out")
    assert done.returncode == 2
    assert "a column 'study'" in done.stderr
    assert not (tmp_path / "out").exists()
