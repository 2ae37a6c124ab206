"""Report texts of phantoms: every wording says what it is meant to say, both styles agree with the labels."""

import itertools
from collections.abc import Iterator

import pytest

from echo_model.data.findings import extract_findings
from echo_model.data.labels import FINDINGS, SIDED, Finding
from echo_model.data.phantoms import draw_findings, generate_phantom, stream
from echo_model.data.tokenizer import train_tokenizer
from echo_model.data.wording import WEIGHTS, fill, write_report
from echo_model.data.wording_bank import CONCLUSIONS, NORMAL, STATEMENTS
from echo_model.data.wording_remarks import BEDSIDE, CLOSINGS, OPENINGS, REMARKS, STANDING
from echo_model.guards import garble_flags
from echo_model.prompt import split_sentences
from echo_model.training.corpus import training_report
from echo_model.training.shape import QUESTION

NOTHING = {name: Finding(present=False) for name in FINDINGS}
DENIALS = {
    "lungs_clear": {"consolidation", "pulmonary_edema", "nodule", "atelectasis"},
    "no_pneumothorax": {"pneumothorax"},
    "heart_normal": {"cardiomegaly"},
    "angles_clear": {"pleural_effusion"},
    "bones_intact": {"rib_fracture"},
    "no_devices": {"pacemaker", "endotracheal_tube", "central_line"},
}
NEUTRAL = {"thorax", "mediastinum", "hila", "hila_edema"}


def finding_of(key: str) -> str:
    name = key.removesuffix("_both")
    return {"edema": "pulmonary_edema", "effusion": "pleural_effusion"}.get(name, name)


def positive_sentences() -> Iterator[tuple[str, str, str]]:
    """Every wording of every positive statement, filled in all ways: sentence, finding, side."""
    for key, wordings in itertools.chain(STATEMENTS.items(), CONCLUSIONS.items()):
        name = finding_of(key)
        if name not in FINDINGS:
            continue
        sides = ["both"] if key.endswith("_both") else ["left", "right"] if name in SIDED else ["none"]
        for wording, side, zone, size in itertools.product(wordings, sides, ("upper", "lower"), ("small", "large")):
            yield fill(wording, Finding(True, side, zone, size)), name, side  # type: ignore[arg-type]  # from the table
            # the sides of the list are those of Finding


def test_every_positive_wording_is_read_as_its_label_and_nothing_else() -> None:
    seen = set()
    for sentence, name, side in positive_sentences():
        seen.add(name)
        read = {key: (mention.state, mention.side) for key, mention in extract_findings(sentence).items()}
        assert read == {name: ("present", side)}, sentence
    assert seen == set(FINDINGS)


@pytest.mark.parametrize("key", sorted(DENIALS))
def test_every_denial_is_read_as_one(key: str) -> None:
    assert any(extract_findings(wording) for wording in STATEMENTS[key])
    for wording in STATEMENTS[key]:
        read = extract_findings(wording)
        assert set(read) <= DENIALS[key], wording
        assert all(mention.state == "absent" for mention in read.values()), wording


def test_remarks_and_frames_tell_of_no_finding() -> None:
    neutral = [wording for key in NEUTRAL for wording in STATEMENTS[key]]
    remarks = [wording for wordings in REMARKS.values() for wording in wordings]
    for sentence in [*neutral, *remarks, *NORMAL, *OPENINGS, *CLOSINGS]:
        assert all(mention.state == "absent" for mention in extract_findings(sentence).values()), sentence


def test_every_statement_has_enough_wordings_of_one_clean_sentence() -> None:
    assert set(STATEMENTS) == NEUTRAL | set(DENIALS) | {key for key in STATEMENTS if finding_of(key) in FINDINGS}
    whole = [*STATEMENTS.values(), *CONCLUSIONS.values(), NORMAL, *REMARKS.values()]
    assert all(len(wordings) >= 4 for wordings in whole)
    sentences = [wording for wordings in whole for wording in wordings]
    assert len(set(sentences)) == len(sentences), "a sentence of the findings must not come back elsewhere"
    for sentence in sentences:
        filled = fill(sentence, Finding(True, "left", "upper", "small"))
        assert split_sentences(filled) == [filled]
        assert filled.endswith(".")
        assert not garble_flags(filled), filled


def test_reports_say_what_the_labels_say() -> None:
    """Both texts of 300 phantoms, read back by the extractor: findings, sides, and in the normalised one denials."""
    for index in range(300):
        findings = draw_findings(stream(6, index, 0))
        report = write_report(stream(6, index, 2), findings)
        normalised, raw = extract_findings(report.text), extract_findings(report.raw)
        for name, truth in findings.items():
            for read in (normalised, raw):
                said = name in read and read[name].state == "present"
                assert said == truth.present, (index, name, report)
                assert not said or read[name].side == truth.side, (index, name, report)
            assert truth.present or name not in normalised or normalised[name].state == "absent"


def test_report_structure_and_order() -> None:
    everything = {name: Finding(True, "left" if name in SIDED else "none", "upper", "small") for name in FINDINGS}
    order = ["thorax", "mediastinum", "consolidation", "nodule", "atelectasis", "edema", "pneumothorax", "cardiomegaly"]
    order += ["hila_edema", "effusion", "rib_fracture", "endotracheal_tube", "central_line", "pacemaker"]
    filled = {key: {fill(wording, everything["pleural_effusion"]) for wording in STATEMENTS[key]} for key in order}
    remarks = {remark for wordings in REMARKS.values() for remark in wordings}
    for index in range(30):
        text = write_report(stream(1, index, 2), everything).text
        body, impression = text.removeprefix("Findings: ").split(" Impression: ")
        told = [sentence for sentence in split_sentences(body) if sentence not in remarks]
        assert len(told) == len(order)
        assert all(sentence in filled[key] for sentence, key in zip(told, order, strict=True)), told
        assert len(split_sentences(impression)) == len(everything) - 3  # devices are not concluded upon


def test_the_report_by_exception_leaves_the_normal_out() -> None:
    for index in range(40):
        phantom = generate_phantom(3, index) if index < 3 else None
        report = phantom.wording if phantom else training_report(3, index)
        assert "Findings:" not in report.raw
        assert not any(wording in report.raw for key in DENIALS for wording in STATEMENTS[key])
    quiet = write_report(stream(3, 1, 2), NOTHING).raw
    assert any(quiet.endswith(wording) for wording in NORMAL)


def test_nobody_with_a_tube_in_the_trachea_stands() -> None:
    tube = NOTHING | {"endotracheal_tube": Finding(True)}
    reports = [write_report(stream(3, index, 2), tube) for index in range(300)]
    assert not [report.raw for report in reports if report.raw.startswith(STANDING)]
    assert any(report.raw.startswith(BEDSIDE) for report in reports)


def test_spans_cover_whole_statements() -> None:
    report = training_report(1, 4)
    for start, end in report.spans:
        part = report.text[start:end]
        assert part.startswith(" ")
        assert part.endswith(".")


def test_wordings_are_drawn_unevenly_and_all_of_them() -> None:
    drawn = [write_report(stream(8, i, 2), NOTHING).text for i in range(1500)]
    counts = [sum(wording in text for text in drawn) for wording in STATEMENTS["hila"]]
    shares = [weight / sum(WEIGHTS[:6] + WEIGHTS[-1:] * 2) for weight in WEIGHTS]
    assert counts[0] / len(drawn) == pytest.approx(shares[0], abs=0.04)
    assert min(counts) > 0


def test_the_vocabulary_that_is_really_used_is_large() -> None:
    """1,200 reports use more than 700 tokens; 32,000 use more than 1,000."""
    texts = [training_report(2, index).text for index in range(1200)]
    tokenizer = train_tokenizer(texts, QUESTION, 1800)
    used = {token for text in texts for token in tokenizer.encode(text).ids}
    assert len(used) > 700
