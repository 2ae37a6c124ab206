"""The rules on 240 reports of our own writing, and on what each of them is for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from echo_model.data.findings import extract_findings
from echo_model.data.normalise import (
    NORMAL_IMPRESSION,
    RuleNormaliser,
    label_changes,
    positive_labels,
    reads_normal,
    report_sentences,
)
from echo_model.data.regions import DEFAULTS, REGION_OF, REGIONS, region_of
from unit.echo_model.report_tables import Labels, raw_reports

REPORTS: Final = raw_reports()
RULES: Final = RuleNormaliser()


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_there_are_enough_reports() -> None:
    text = Path(__file__).with_name("raw_reports.tsv").read_text(encoding="utf-8")
    plain, hard = text.split("# hard\n")
    assert len(plain.strip().splitlines()) - 1 >= 200
    assert len(hard.strip().splitlines()) >= 40
    assert len({report for report, _ in REPORTS}) == len(REPORTS) >= 240


@pytest.mark.parametrize(("report", "wanted"), REPORTS, ids=[f"{n}-{raw[:40]!r}" for n, (raw, _) in enumerate(REPORTS)])
def test_no_positive_finding_is_lost_or_invented(report: str, wanted: Labels) -> None:
    result = RULES.normalise(report)
    assert positive_labels(report) == wanted
    assert positive_labels(result.text) == wanted
    assert label_changes(report, result.text) == ()
    assert result.notes == ()
    # Sentences are kept word for word, and every region is told.
    whole = _words(result.text)
    for sentence in [*report_sentences(report)[0], *report_sentences(report)[1]]:
        if not reads_normal(sentence):
            parts = re.split(r";| and (?=there )| but (?=there )", sentence)
            assert all(_words(part) in whole for part in parts), sentence
    for region in REGIONS:
        # A sentence of two regions stands once, in one of them.
        elsewhere = any(REGION_OF[name] == region for name in positive_labels(result.findings))
        assert result.regions[region] or elsewhere, region
    for name in wanted:
        assert DEFAULTS[REGION_OF[name]] not in result.regions[REGION_OF[name]]


def test_regions_come_in_their_order() -> None:
    report = (
        "Left pacemaker. Old rib fracture on the left. Small right effusion. Prominent hila. Cardiomegaly. "
        "Right upper lobe nodule. Tracheal deviation. Mastectomy on the left."
    )
    assert RULES.normalise(report).findings == (
        "Mastectomy on the left. Tracheal deviation. Right upper lobe nodule. No pneumothorax. Cardiomegaly. "
        "Prominent hila. Small right effusion. Old rib fracture on the left. Left pacemaker."
    )


def test_a_report_of_nothing_is_normal_everywhere() -> None:
    result = RULES.normalise("")
    assert [result.regions[region][0] for region in REGIONS] == list(DEFAULTS.values())
    assert result.impression == NORMAL_IMPRESSION
    assert positive_labels(result.text) == {}


def test_a_denial_of_several_regions_is_taken_apart() -> None:
    result = RULES.normalise("There is no focal consolidation, pleural effusion, pneumothorax or rib fracture.")
    assert result.regions["lungs"] == ("There is no focal consolidation or pneumothorax.",)
    assert result.regions["pleura"] == ("There is no pleural effusion.",)
    assert result.regions["bones"] == ("There is no rib fracture.",)


def test_interpretation_and_advice_go_to_the_impression() -> None:
    result = RULES.normalise("Left basilar opacity. This may represent pneumonia. Follow-up is recommended.")
    assert result.impression == "This may represent pneumonia. Follow-up is recommended."
    assert result.regions["lungs"][0] == "Left basilar opacity."


def test_what_only_the_impression_says_is_not_denied_by_the_findings() -> None:
    result = RULES.normalise("FINDINGS: Lungs are clear. IMPRESSION: Cardiomegaly. Right rib fracture.")
    assert result.regions["heart"] == ("Cardiomegaly.",)
    assert result.regions["bones"] == ("Right rib fracture.",)


def test_without_an_impression_the_abnormal_sentences_are_repeated() -> None:
    assert RULES.normalise("Small left effusion. Normal heart.").impression == "Small left effusion."


def test_history_and_technique_are_left_out() -> None:
    text = RULES.normalise("HISTORY: Left effusion. TECHNIQUE: PA and lateral. FINDINGS: Normal heart.").text
    assert "HISTORY" not in text
    assert "lateral" not in text
    assert extract_findings(text)["pleural_effusion"].state == "absent"
    assert "views" not in RULES.normalise("PA and lateral views of the chest. Lungs are clear.").text


@pytest.mark.parametrize("report", ["???", "1. 2. 3.", "Findings:", "no " * 300, "右侧气胸。", "x" * 5000, "\n\n\n"])
def test_odd_reports_do_no_harm(report: str) -> None:
    result = RULES.normalise(report)
    assert positive_labels(result.text) == {}


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ("Left effusion.", "No effusion.", "pleural_effusion: present left became absent none"),
        ("Left effusion.", "Right effusion.", "pleural_effusion: present left became present right"),
        ("Left effusion.", "Normal heart.", "pleural_effusion: present left became lost"),
        ("Possible nodule.", "Nodule.", "nodule: uncertain none became present none"),
        ("No nodule.", "Normal heart.", "nodule: absent none became lost"),
        ("Normal heart.", "Normal heart. Left nodule.", "nodule: invented (present)"),
    ],
)
def test_label_changes_are_named(before: str, after: str, change: str) -> None:
    assert change in label_changes(before, after)


def test_more_denials_are_no_change() -> None:
    assert label_changes("Left effusion.", "Left effusion. Lungs are clear. No pneumothorax.") == ()


@pytest.mark.parametrize(
    ("sentence", "normal"),
    [
        ("No effusion.", True),
        ("The trachea is midline.", True),
        ("The hila are normal.", True),
        ("Hiatal hernia.", False),
        ("No change in the mass.", False),
        ("Tortuous aorta, otherwise normal.", False),
        ("Left effusion.", False),
        ("Normal but for a scar.", False),
    ],
)
def test_reads_normal(sentence: str, normal: bool) -> None:
    assert reads_normal(sentence) is normal


@pytest.mark.parametrize(
    ("sentence", "region"),
    [
        ("The heart is enlarged.", "heart"),
        ("Nasogastric tube in the stomach.", "devices"),
        ("Fracture of the clavicle.", "bones"),
        ("Free air under the diaphragm.", "pleura"),
        ("Goitre.", "mediastinum"),
        ("Enlarged hilum.", "hila"),
        ("Emphysema.", "lungs"),
        ("Mastectomy.", "thorax"),
        ("Unchanged.", None),
    ],
)
def test_region_of(sentence: str, region: str | None) -> None:
    assert region_of(sentence) == region
