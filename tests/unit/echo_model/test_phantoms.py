"""Phantoms: the same everywhere, true to their labels, on the right side."""

import hashlib

import numpy as np
import pytest

from echo_model.data.findings import extract_findings
from echo_model.data.labels import BILATERAL, DENSE_LABELS, FINDINGS, SIDED, Finding
from echo_model.data.phantoms import NATIVE_SIZE, PREVALENCE, draw_findings, generate_phantom, stream
from echo_model.data.wording import CONCLUSIONS, STATEMENTS, write_report

NOTHING = {name: Finding(present=False) for name in FINDINGS}


def digest(seed: int, index: int) -> str:
    phantom = generate_phantom(seed, index)
    return hashlib.sha256(phantom.image.tobytes() + phantom.report.encode() + phantom.raw_report.encode()).hexdigest()


# Pixels and texts of a series must never change without a word: checkpoints and figures are tied to them.
@pytest.mark.parametrize(("seed", "index", "known"), [(1, 3, "e2f9d114a5d8c330"), (2, 10, "2540fa46f03e8046")])
def test_a_phantom_is_the_same_on_every_machine(seed: int, index: int, known: str) -> None:
    assert digest(seed, index)[:16] == known


def test_phantoms_differ_by_seed_and_index() -> None:
    assert len({digest(1, 0), digest(1, 1), digest(2, 0)}) == 3


def test_image_form() -> None:
    image = generate_phantom(4, 2).image
    assert image.shape == (NATIVE_SIZE, NATIVE_SIZE)
    assert image.dtype == np.uint8
    assert image.std() > 20
    assert 20 < image.mean() < 200


def only(name: str, side: str, zone: str = "none", size: str = "none") -> dict[str, Finding]:
    return NOTHING | {name: Finding(True, side, zone, size)}  # type: ignore[arg-type]  # sides from parametrize


CASES = [
    ("pleural_effusion", "none", "large"),
    ("pneumothorax", "none", "none"),
    ("consolidation", "upper", "none"),
    ("nodule", "lower", "none"),
    ("atelectasis", "none", "none"),
    ("rib_fracture", "none", "none"),
    ("pacemaker", "none", "none"),
]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "zone", "size"), CASES)
def test_a_finding_changes_the_half_of_its_side_only(name: str, zone: str, size: str, side: str) -> None:
    """The patient's right is on the left of the image; only leads of devices cross the midline."""
    changed = np.abs(
        generate_phantom(9, 1, only(name, side, zone, size)).image.astype(int)
        - generate_phantom(9, 1, NOTHING).image.astype(int)
    )
    left_half, right_half = changed[:, : NATIVE_SIZE // 2].sum(), changed[:, NATIVE_SIZE // 2 :].sum()
    own, other = (left_half, right_half) if side == "right" else (right_half, left_half)
    assert own > 400
    assert own > (2 if name == "pacemaker" else 20) * other


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "zone", "size"), CASES)
def test_masks_lie_on_their_side_and_where_the_image_changed(name: str, zone: str, size: str, side: str) -> None:
    phantom = generate_phantom(9, 1, only(name, side, zone, size))
    mask = phantom.masks[f"{name}.{side}"]
    columns = np.nonzero(mask)[1]
    assert (columns.mean() < NATIVE_SIZE / 2) == (side == "right")
    changed = phantom.image.astype(int) - generate_phantom(9, 1, NOTHING).image.astype(int)
    assert np.abs(changed[mask]).mean() > 4 * np.abs(changed[~mask]).mean()


def test_masks_name_exactly_what_is_there() -> None:
    for index in range(40):
        phantom = generate_phantom(11, index)
        wanted = set()
        for name, finding in phantom.findings.items():
            sides = [".right", ".left"] if finding.side == "both" else [f".{finding.side}"]
            for side in sides if name in SIDED else [""]:
                if finding.present:
                    wanted |= {f"{name}{side}{more}" for more in ("", f".{finding.zone}", f".{finding.size}")}
        assert set(phantom.masks) == wanted & set(DENSE_LABELS)
        assert all(mask.any() for mask in phantom.masks.values())


def test_cardiomegaly_is_a_wider_heart() -> None:
    big = generate_phantom(9, 1, only("cardiomegaly", "none")).image.astype(int)
    row = big[int(NATIVE_SIZE * 0.6)] - generate_phantom(9, 1, NOTHING).image.astype(int)[int(NATIVE_SIZE * 0.6)]
    assert (row > 15).sum() > 10


def test_drawn_findings_obey_the_rules() -> None:
    seen = dict.fromkeys(FINDINGS, 0)
    for index in range(2000):
        for name, finding in draw_findings(stream(5, index, 0)).items():
            seen[name] += finding.present
            assert finding.present or finding == Finding(present=False)
            assert (finding.side != "none") == (finding.present and name in SIDED)
            assert finding.side != "both" or name in BILATERAL
    for name, count in seen.items():
        assert count / 2000 == pytest.approx(PREVALENCE[name] * 0.88, abs=0.03)


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
    text = write_report(stream(1, 1, 2), everything).text
    body, impression = text.removeprefix("Findings: ").split(" Impression: ")
    order = ["thora", "mediastin", "consolidation", "nodule", "atelecta", "edema", "pneumothorax", "hila ", "effusion"]
    order += ["rib", "endotracheal", "central", "pacemaker"]
    places = [body.lower().replace("chest wall is", "thorax").find(word) for word in order]
    assert -1 not in places
    assert places == sorted(places)
    assert impression.startswith("Cardiomegaly.")


def test_spans_cover_whole_statements() -> None:
    report = generate_phantom(1, 4).wording
    for start, end in report.spans:
        part = report.text[start:end]
        assert part.startswith(" ")
        assert part.endswith(".")


def test_wordings_are_drawn_unevenly() -> None:
    first = sum("The thorax is symmetric." in write_report(stream(8, i, 2), NOTHING).text for i in range(1000))
    assert 640 < first < 760


def test_every_statement_has_three_wordings_and_one_sentence() -> None:
    for key, wordings in STATEMENTS.items():
        assert len(wordings) == 3, key
        assert all(w.count(".") == 1 and w.endswith(".") for w in wordings), key
    assert set(CONCLUSIONS) <= set(FINDINGS)
