"""What is reported, case by case, over the headers that real radiographs come with."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from dispatcher.domain.eligibility import REASONS, Ask, Policy, Select, Skip, decide
from dispatcher.domain.evidence import View, age_years, view
from dispatcher.domain.study import study_of
from unit.dispatcher.studies import instance, new_uid, study_data

POLICY = Policy()
CR = "1.2.840.10008.5.1.4.1.1.1"
SC = "1.2.840.10008.5.1.4.1.1.7"
PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"


def verdict(*instances: dict[str, Any], policy: Policy = POLICY, **study: Any) -> str:
    decision = decide(study_of(study_data(*instances, **study)), policy)
    if isinstance(decision, Ask):
        return f"ask: {' '.join(decision.codes)}"
    return decision.code if isinstance(decision, Skip) else "report"


def blank(**changes: Any) -> dict[str, Any]:
    return instance(**{"body_part_examined": None, "view_position": None} | changes)


@pytest.mark.parametrize(
    ("expected", "image", "study"),
    [
        # modality
        ("report", instance(), {}),
        ("report", instance(modality="CR", sop_class_uid=CR), {}),
        ("report", instance(modality="dx "), {}),
        ("report", instance(modality="DX", sop_class_uid=SC), {}),
        ("report", instance(modality=None), {}),
        ("modality_not_reportable", instance(modality=None, sop_class_uid=SC), {}),
        ("modality_not_reportable", instance(modality="CT"), {}),
        ("modality_not_reportable", instance(modality="MG"), {}),
        ("modality_not_reportable", instance(modality="SC", sop_class_uid=SC), {}),
        ("modality_not_reportable", instance(modality="SR", has_pixel_data=False), {}),
        # what kind of image
        ("no_pixel_data", instance(has_pixel_data=False), {}),
        ("localiser_only", instance(image_type=["ORIGINAL", "PRIMARY", "LOCALIZER"]), {}),
        ("multi_frame_only", instance(number_of_frames=30), {}),
        ("report", instance(number_of_frames=None), {}),
        ("image_too_large", instance(rows=20_000, columns=20_000), {}),
        ("report", instance(rows=None, columns=None), {}),
        # body part: one source says chest
        ("report", blank(body_part_examined="THORAX"), {}),
        ("report", blank(body_part_examined="chest "), {}),
        ("report", blank(series_description="Thorax pa"), {}),
        ("report", blank(series_description="TORAX_AP"), {}),
        ("report", blank(protocol_name="W033 Chest, PA"), {}),
        ("report", blank(), {"description": "XR CHEST 2 VIEWS"}),
        ("report", blank(), {"description": "Rx torace"}),
        ("report", blank(), {"description": "胸部正位"}),
        ("report", blank(), {"procedure": "Portable CXR"}),
        ("report", blank(view_position="CHEST PA"), {}),
        # body part: another one
        ("not_chest", blank(body_part_examined="ABDOMEN"), {}),
        ("not_chest", blank(body_part_examined="EXTREMETY"), {}),
        ("not_chest", blank(body_part_examined="TSPINE"), {}),
        ("not_chest", blank(series_description="Thoracic spine AP"), {}),
        ("not_chest", blank(), {"description": "Left knee 3 views"}),
        ("not_chest", blank(), {"procedure": "Brustwirbelsäule in 2 Ebenen"}),
        ("not_chest", blank(series_description="KUB"), {}),
        ("not_chest", blank(body_part_examined="CHEST"), {"description": "Dental panoramic"}),
        ("not_chest", instance(protocol_name="Canine thorax DV"), {}),
        # the default of a device against what a person typed
        ("conflicting_body_part", instance(body_part_examined="CHEST"), {"description": "HAND 3 VIEWS"}),
        ("conflicting_body_part", instance(body_part_examined="CHEST", series_description="Hand PA"), {}),
        ("report", instance(body_part_examined="ABDOMEN", series_description="Chest PA"), {"description": "Chest"}),
        ("report", instance(), {"description": "CHEST AND ABDOMEN"}),
        # "shoulder" holds no "thorax", "archest" no chest
        ("report", blank(series_description="ORCHESTRA"), {}),
        # views
        ("no_frontal_view", instance(view_position="LL"), {}),
        ("no_frontal_view", instance(view_position="LATERAL"), {}),
        ("no_frontal_view", instance(view_position="LLD"), {}),
        ("no_frontal_view", instance(view_position="RAO"), {}),
        ("no_frontal_view", instance(view_position=None, series_description="Chest LAT"), {}),
        ("no_frontal_view", instance(view_position=None, series_description="AP lateral decubitus"), {}),
        ("report", instance(view_position="AP"), {}),
        ("report", instance(view_position=""), {"description": "Chest PA and lateral"}),
        ("report", instance(view_position="W PA"), {}),
        # age
        ("paediatric", instance(), {"age": "012Y"}),
        ("paediatric", instance(), {"age": "008M"}),
        ("paediatric", instance(), {"born": "2015-06-01"}),
        ("report", instance(), {"age": "018Y"}),
        ("report", instance(), {"age": "Y12"}),
        ("report", instance(), {"age": "-05Y"}),
        ("report", instance(), {"age": "412Y"}),
        ("report", instance(), {"born": "1900-01-01", "age": "040Y"}),
        ("paediatric", instance(), {"born": "1900-01-01", "age": "004Y"}),
        ("report", instance(), {"born": "1990-01-01", "age": "004Y"}),
        ("report", instance(), {"born": "2030-01-01"}),
        ("paediatric", instance(), {"description": "XR chest paediatric"}),
        ("paediatric", instance(series_description="NICU portable chest"), {}),
        ("report", instance(), {"description": "Infantry medical, chest", "age": "030Y"}),
        ("report", instance(), {"description": "XR chest child", "age": "030Y"}),
    ],
)
def test_default_policy(expected: str, image: dict[str, Any], study: dict[str, Any]) -> None:
    assert verdict(image, **study) == expected


def test_missing_evidence_follows_the_site() -> None:
    strict = Policy(missing_evidence="skip")
    assert verdict(blank()) == "report"
    assert verdict(blank(), policy=strict) == "body_part_unknown"
    assert verdict(instance(view_position=None), policy=strict) == "view_unknown"
    assert verdict(instance(), policy=strict) == "report"
    decision = decide(study_of(study_data(blank(), age="050Y")), POLICY)
    assert isinstance(decision, Select)
    assert decision.assumed == ("body_part_unknown", "view_unknown")


LATERAL = {"view_position": "LL"}
BLANK = {"body_part_examined": None, "view_position": None}
BLANK_PA = {"body_part_examined": None, "view_position": "PA"}
HAND_AND_CHEST = {"series_description": "Hand PA"}
"""Changes to an image of which the headers say that it is a frontal view of the chest."""


@pytest.mark.parametrize(
    ("first", "second", "missing", "expected", "chosen"),
    [
        # The frontal view's headers are blank: the site's say on missing evidence decides.
        (LATERAL, BLANK_PA, "report", "report: body_part_unknown", [1, 0]),
        (LATERAL, BLANK_PA, "ask", "ask: body_part_unknown", [1, 0]),
        (LATERAL, BLANK_PA, "skip", "skip: body_part_unknown", []),
        (LATERAL, BLANK, "report", "report: body_part_unknown view_unknown", [1, 0]),
        (LATERAL, BLANK, "ask", "ask: body_part_unknown view_unknown", [1, 0]),
        (LATERAL, BLANK, "skip", "skip: body_part_unknown", []),
        (LATERAL, {"view_position": None}, "report", "report: view_unknown", [1, 0]),
        (LATERAL, {"view_position": None}, "skip", "skip: view_unknown", []),
        ({"view_position": "RAO"}, BLANK_PA, "report", "report: body_part_unknown", [1]),
        # What is known to be the chest goes before what may be.
        ({}, BLANK_PA, "skip", "report:", [0]),
        ({"view_position": None}, BLANK_PA, "report", "report: view_unknown", [0]),
        # No other image can be the frontal view.
        (LATERAL, BLANK | LATERAL, "report", "skip: no_frontal_view", []),
        (LATERAL, {"body_part_examined": "ABDOMEN", "view_position": "AP"}, "report", "skip: no_frontal_view", []),
        (BLANK | LATERAL, {"body_part_examined": "HAND"}, "report", "skip: no_frontal_view", []),
        # Headers that contradict each other have a setting of their own.
        (LATERAL, HAND_AND_CHEST, "report", "skip: conflicting_body_part", []),
        (BLANK, HAND_AND_CHEST, "report", "report: body_part_unknown view_unknown", [0]),
    ],
)
def test_a_frontal_view_whose_headers_are_blank_beside_a_lateral_that_says_chest(
    first: dict[str, Any], second: dict[str, Any], missing: str, expected: str, chosen: list[int]
) -> None:
    images = [instance(**first), instance(**second)]
    policy = Policy(missing_evidence=missing)  # type: ignore[arg-type]  # one of the words
    decision = decide(study_of(study_data(*images, age="050Y")), policy)
    if isinstance(decision, Skip):
        assert (f"skip: {decision.code}", []) == (expected, chosen)
        return
    select = decision.select if isinstance(decision, Ask) else decision
    said = f"ask: {' '.join(decision.codes)}" if isinstance(decision, Ask) else f"report: {' '.join(select.assumed)}"
    assert said.rstrip() == expected
    uids = [image["sop_instance_uid"] for image in images]
    assert [uids.index(image.sop_instance_uid) for image in select.images] == chosen


@pytest.mark.parametrize(
    ("setting", "code", "image", "study"),
    [
        ("missing_evidence", "body_part_unknown", blank(view_position="PA"), {"age": "050Y"}),
        ("missing_evidence", "view_unknown", instance(view_position=None), {"age": "050Y"}),
        ("conflicting_evidence", "conflicting_body_part", instance(), {"age": "050Y", "description": "HAND 3 VIEWS"}),
        ("younger_patients", "paediatric", instance(), {"age": "004Y"}),
        ("unknown_age", "age_unknown", instance(), {}),
        ("old_studies", "old_study", instance(), {"age": "050Y", "taken": "2025-11-30T10:00:00"}),
        ("burned_in_annotation", "burned_in_annotation", instance(burned_in_annotation="YES"), {"age": "050Y"}),
    ],
)
def test_every_doubt_is_reported_asked_or_skipped_as_the_site_says(
    setting: str, code: str, image: dict[str, Any], study: dict[str, Any]
) -> None:
    def decision(action: str) -> Select | Ask | Skip:
        policy = Policy(**{"maximum_study_age_days": 30, setting: action})  # type: ignore[arg-type]  # one of the words
        return decide(study_of(study_data(image, **study)), policy)

    reported, asked, skipped = decision("report"), decision("ask"), decision("skip")
    assert isinstance(reported, Select)
    assert reported.assumed == (code,)
    assert isinstance(asked, Ask)
    assert asked.codes == (code,)
    assert asked.text == REASONS[code]
    assert asked.select.images == reported.images
    assert isinstance(skipped, Skip)
    assert skipped.code == code


def test_several_doubts_are_all_named_and_one_that_skips_decides() -> None:
    asking = Policy(missing_evidence="ask", unknown_age="ask")
    assert verdict(blank(), policy=asking) == "ask: body_part_unknown age_unknown view_unknown"
    assert verdict(blank(), policy=asking, age="004Y") == "paediatric"
    assert verdict(blank(view_position="LL"), policy=asking) == "no_frontal_view"


def test_a_site_s_procedure_code_says_chest() -> None:
    policy = Policy(missing_evidence="skip", chest_procedure_codes=frozenset({"XTHO2"}))
    image = instance(body_part_examined=None)
    assert verdict(image, policy=policy) == "body_part_unknown"
    assert verdict(image, policy=policy, procedure_code="XTHO2") == "report"
    assert verdict(image, policy=policy, procedure_code="XABD1") == "body_part_unknown"


def test_the_evidence_is_named_by_the_header_that_gave_it() -> None:
    study = study_data(instance(series_description="Thorax pa"), description="XR chest", age="050Y")
    decision = decide(study_of(study), POLICY)
    assert isinstance(decision, Select)
    assert decision.evidence == (
        "chest_by_body_part_examined",
        "chest_by_series_description",
        "chest_by_study_description",
        "frontal_by_headers",
    )
    skip = decide(study_of(study_data(instance(), description="HAND 3 VIEWS")), POLICY)
    assert isinstance(skip, Skip)
    assert skip.evidence == ("chest_by_body_part_examined", "other_by_study_description")


def test_secondary_captures_and_children_by_setting() -> None:
    assert verdict(instance(modality="SC", sop_class_uid=SC), policy=Policy(modalities=frozenset({"SC"}))) == "report"
    assert verdict(instance(), policy=Policy(minimum_age_years=0), age="001D") == "report"


def test_one_reportable_image_among_others_is_enough() -> None:
    chest = instance()
    others = [instance(modality="CT"), instance(has_pixel_data=False), blank(body_part_examined="HAND")]
    decision = decide(study_of(study_data(*others, chest)), POLICY)
    assert isinstance(decision, Select)
    assert [image.sop_instance_uid for image in decision.images] == [chest["sop_instance_uid"]]


def test_images_frontal_first_and_no_more_than_allowed() -> None:
    lateral = instance(view_position="LL", instance_number=1)
    ap = instance(view_position="AP", instance_number=2)
    pa = instance(view_position="PA", instance_number=3)
    raw = instance(view_position="PA", instance_number=0, sop_class_uid=PROCESSING)
    study = study_of(study_data(lateral, ap, raw, pa))

    def chosen(most: int) -> list[str]:
        decision = decide(study, Policy(max_images=most))
        assert isinstance(decision, Select)
        return [image.sop_instance_uid for image in decision.images]

    in_order = [image["sop_instance_uid"] for image in (pa, lateral, ap)]
    assert [chosen(most) for most in (1, 2, 3, 9)] == [in_order[:1], in_order[:2], in_order, in_order]


def test_of_several_frontals_the_last_or_the_first_or_a_person_s_choice() -> None:
    early = instance(acquired_at="2026-01-05T07:50:00", instance_number=9)
    late = instance(acquired_at="2026-01-05T07:55:00", instance_number=1)
    for which, expected in (("last", late), ("first", early)):
        decision = decide(study_of(study_data(early, late)), Policy(several_frontals=which))  # type: ignore[arg-type]  # one of the words
        assert isinstance(decision, Select)
        assert decision.images[0].sop_instance_uid == expected["sop_instance_uid"]
    assert verdict(early, late, policy=Policy(several_frontals="ask")) == "ask: several_frontals"
    assert verdict(early, policy=Policy(several_frontals="ask")) == "report"


def test_old_studies_are_priors_only_where_a_limit_is_set() -> None:
    assert verdict(instance(), taken="2019-03-01T10:00:00") == "report"
    limited = Policy(maximum_study_age_days=30)
    assert verdict(instance(), policy=limited, taken="2019-03-01T10:00:00") == "old_study"
    assert verdict(instance(), policy=limited, taken="2025-12-20T10:00:00") == "report"
    assert verdict(instance(), policy=limited, taken=None) == "report"


def test_an_image_for_processing_serves_when_there_is_no_other() -> None:
    assert verdict(instance(sop_class_uid=PROCESSING)) == "report"


def test_priority_by_calling_ae_title() -> None:
    policy = Policy(stat_calling_ae_titles=frozenset({"ER"}))
    for callers, expected in ((["ER", "PACS"], "stat"), (["PACS"], "routine")):
        decision = decide(study_of(study_data(callers=callers)), policy)
        assert isinstance(decision, Select)
        assert decision.priority == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PA", View.FRONTAL),
        ("ap supine", View.FRONTAL),
        ("p.a.", View.FRONTAL),
        ("Posteroanterior", View.FRONTAL),
        ("LAT", View.LATERAL),
        ("RL", View.LATERAL),
        ("lt lat", View.LATERAL),
        ("LPO", View.OTHER),
        ("oblique", View.OTHER),
        ("PAT", View.UNKNOWN),
        ("", View.UNKNOWN),
    ],
)
def test_view(text: str, expected: View) -> None:
    study = study_of(study_data(instance(view_position=text)))
    assert view(study.images[0]) is expected


def test_age_counts_to_the_day_before_the_birthday() -> None:
    def age(taken: str) -> float | None:
        return age_years(study_of(study_data(born="2008-01-05", taken=taken)))

    assert (age("2026-01-04"), age("2026-01-05")) == (17.0, 18.0)
    assert study_of(study_data(taken=None)).taken_on == date(2026, 1, 5)


def test_every_reason_is_a_sentence_and_none_names_an_identifier() -> None:
    uid = new_uid()
    for code, text in REASONS.items():
        assert text.endswith("."), code
        assert uid not in text, code


@pytest.mark.parametrize("policy", [POLICY, Policy(maximum_study_age_days=7, old_studies="report")])
def test_a_fetched_prior_is_never_reported(policy: Policy) -> None:
    data = study_data(instance())
    assert isinstance(decide(study_of(data), policy), Select)
    assert decide(study_of(data | {"fetched_as_prior": True}), policy) == Skip("fetched_as_prior")
