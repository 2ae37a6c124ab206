"""The finding extractor on sentences of ordinary reports."""

import pytest

from echo_model.data.findings import FINDINGS, extract_findings

P, A, U = "present", "absent", "uncertain"

# sentence -> finding: (state, side). Findings not listed must not be reported as present or uncertain.
SENTENCES: list[tuple[str, dict[str, tuple[str, str]]]] = [
    ("There is a small left pleural effusion.", {"pleural_effusion": (P, "left")}),
    ("No pleural effusion or pneumothorax.", {"pleural_effusion": (A, "none"), "pneumothorax": (A, "none")}),
    (
        "No focal consolidation, pleural effusion, or pneumothorax is seen.",
        {"consolidation": (A, "none"), "pleural_effusion": (A, "none"), "pneumothorax": (A, "none")},
    ),
    ("Bilateral pleural effusions, right greater than left.", {"pleural_effusion": (P, "both")}),
    ("Large right-sided pneumothorax with collapse of the right lung.", {"pneumothorax": (P, "right")}),
    ("The heart is enlarged.", {"cardiomegaly": (P, "none")}),
    ("The heart is not enlarged.", {"cardiomegaly": (A, "none")}),
    ("Heart size is normal.", {"cardiomegaly": (A, "none")}),
    ("The cardiac silhouette is mildly enlarged.", {"cardiomegaly": (P, "none")}),
    ("Stable cardiomegaly.", {"cardiomegaly": (P, "none")}),
    ("The cardiomediastinal silhouette is unremarkable.", {"cardiomegaly": (A, "none")}),
    ("Enlarged cardiac silhouette.", {"cardiomegaly": (P, "none")}),
    ("Borderline heart size, possibly mildly enlarged.", {"cardiomegaly": (U, "none")}),
    ("The lungs are clear.", {"consolidation": (A, "none"), "nodule": (A, "none")}),
    ("Both lungs are clear bilaterally without focal consolidation.", {"consolidation": (A, "none")}),
    ("There is consolidation in the right lower lobe.", {"consolidation": (P, "right")}),
    ("Patchy airspace opacity in the left base.", {"consolidation": (P, "left")}),
    ("Findings are concerning for pneumonia in the left lower lobe.", {"consolidation": (U, "left")}),
    ("Pneumonia cannot be excluded.", {"consolidation": (U, "none")}),
    ("Possible left lower lobe consolidation.", {"consolidation": (U, "left")}),
    ("Consolidation is not seen.", {"consolidation": (A, "none")}),
    ("No evidence of pulmonary edema.", {"pulmonary_edema": (A, "none")}),
    ("Mild interstitial edema is present.", {"pulmonary_edema": (P, "none")}),
    ("Moderate pulmonary oedema has developed.", {"pulmonary_edema": (P, "none")}),
    ("The pulmonary edema has resolved.", {"pulmonary_edema": (A, "none")}),
    ("A 9 mm nodule is seen in the right upper lobe.", {"nodule": (P, "right")}),
    ("There is no suspicious nodule.", {"nodule": (A, "none")}),
    ("Nodular opacity projecting over the left mid lung.", {"nodule": (P, "left")}),
    ("Bibasilar atelectasis.", {"atelectasis": (P, "both")}),
    ("Linear atelectasis at the left base.", {"atelectasis": (P, "left")}),
    ("Minimal subsegmental atelectatic changes in the right lung base.", {"atelectasis": (P, "right")}),
    ("No atelectasis.", {"atelectasis": (A, "none")}),
    ("Displaced fracture of the left seventh rib.", {"rib_fracture": (P, "left")}),
    ("Multiple right rib fractures.", {"rib_fracture": (P, "right")}),
    ("No acute rib fracture.", {"rib_fracture": (A, "none")}),
    ("No displaced fracture.", {"rib_fracture": (A, "none")}),
    ("The osseous structures are intact.", {"rib_fracture": (A, "none")}),
    ("Old fracture of the left clavicle.", {}),
    ("Left chest wall pacemaker with leads in the right atrium and right ventricle.", {"pacemaker": (P, "left")}),
    ("A dual-lead ICD is in place on the left.", {"pacemaker": (P, "left")}),
    ("The pacemaker has been removed.", {"pacemaker": (A, "none")}),
    ("The endotracheal tube terminates 4 cm above the carina.", {"endotracheal_tube": (P, "none")}),
    ("ET tube in good position.", {"endotracheal_tube": (P, "none")}),
    ("The patient has been extubated.", {"endotracheal_tube": (A, "none")}),
    (
        "Right internal jugular central venous catheter with its tip in the right atrium.",
        {"central_line": (P, "right")},
    ),
    ("Left PICC line ends in the superior vena cava.", {"central_line": (P, "left")}),
    (
        "A right subclavian line is in place, no pneumothorax.",
        {"central_line": (P, "right"), "pneumothorax": (A, "none")},
    ),
    ("No pneumothorax, small left pleural effusion.", {"pneumothorax": (A, "none"), "pleural_effusion": (P, "left")}),
    ("No pneumothorax but a moderate right effusion.", {"pneumothorax": (A, "none"), "pleural_effusion": (P, "right")}),
    ("Small right apical pneumothorax; no effusion.", {"pneumothorax": (P, "right"), "pleural_effusion": (A, "none")}),
    ("Left effusion with adjacent atelectasis.", {"pleural_effusion": (P, "left"), "atelectasis": (P, "left")}),
    (
        "Left lower lobe consolidation and right pleural effusion.",
        {"consolidation": (P, "left"), "pleural_effusion": (P, "right")},
    ),
    ("No significant change in the left pleural effusion.", {"pleural_effusion": (P, "left")}),
    ("Without evidence of pneumothorax or effusion.", {"pneumothorax": (A, "none"), "pleural_effusion": (A, "none")}),
    ("The costophrenic angles are sharp.", {"pleural_effusion": (A, "none")}),
    ("Blunting of the left costophrenic angle.", {"pleural_effusion": (P, "left")}),
    ("Small pericardial effusion.", {}),
    ("Subcutaneous edema of the chest wall.", {}),
    ("Rule out pneumothorax.", {}),
    ("History of rib fractures.", {}),
    ("Neither consolidation nor effusion.", {"consolidation": (A, "none"), "pleural_effusion": (A, "none")}),
    (
        "Pleural effusion versus atelectasis at the left base.",
        {"pleural_effusion": (U, "left"), "atelectasis": (U, "left")},
    ),
    ("There may be a tiny right pneumothorax.", {"pneumothorax": (U, "right")}),
    ("The previously seen right pneumothorax is no longer visible.", {"pneumothorax": (A, "none")}),
    ("No tubes or lines.", {"central_line": (A, "none"), "endotracheal_tube": (A, "none"), "pacemaker": (A, "none")}),
    ("Interval removal of the endotracheal tube.", {"endotracheal_tube": (A, "none")}),
    ("Tracheostomy tube in place.", {}),
    ("Hilar contours are normal.", {}),
    ("The lungs are clear except for a nodule in the left upper lobe.", {"nodule": (P, "left")}),
    ("Bilateral consolidations without effusion.", {"consolidation": (P, "both"), "pleural_effusion": (A, "none")}),
    (
        "Cardiomegaly with pulmonary edema and bilateral effusions.",
        {"cardiomegaly": (P, "none"), "pulmonary_edema": (P, "none"), "pleural_effusion": (P, "both")},
    ),
]


@pytest.mark.parametrize(("sentence", "wanted"), SENTENCES, ids=[sentence[:40] for sentence, _ in SENTENCES])
def test_sentence(sentence: str, wanted: dict[str, tuple[str, str]]) -> None:
    found = extract_findings(sentence)
    for name, expected in wanted.items():
        assert name in found, found
        assert (found[name].state, found[name].side) == expected, found
        assert found[name].sentence == sentence
    assert {name for name, mention in found.items() if mention.state != "absent"} <= set(wanted), found


def test_there_are_enough_sentences_for_every_finding() -> None:
    assert len(SENTENCES) >= 60
    for name in FINDINGS:
        states = {wanted[name][0] for _, wanted in SENTENCES if name in wanted}
        assert {P, A} <= states, name


def test_mentions_are_merged_over_sentences() -> None:
    found = extract_findings("Findings: There may be an effusion. Small left effusion. Impression: Pleural effusion.")
    assert found["pleural_effusion"].state == "present"
    assert found["pleural_effusion"].side == "left"
    assert found["pleural_effusion"].sentence == "Small left effusion."


def test_present_beats_absent_whatever_the_order() -> None:
    for text in ("Nodule on the right. No nodule on the left.", "No nodule on the left. Nodule on the right."):
        found = extract_findings(text)["nodule"]
        assert (found.state, found.side) == ("present", "right")


def test_sides_of_two_sentences_add_up() -> None:
    assert extract_findings("Left effusion. Right effusion.")["pleural_effusion"].side == "both"


@pytest.mark.parametrize("text", ["", " ", ".", "!!!", "Findings:", "\n\n", "no no no", "右侧气胸", "no " * 500])
def test_odd_texts_give_nothing(text: str) -> None:
    assert extract_findings(text) == {}


def test_order_is_that_of_the_names() -> None:
    text = "Central line. Pacemaker. Nodule. Cardiomegaly."
    assert list(extract_findings(text)) == ["cardiomegaly", "nodule", "pacemaker", "central_line"]
