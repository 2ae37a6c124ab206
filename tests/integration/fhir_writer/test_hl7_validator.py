"""The HL7 validator, an implementation that knows nothing of ours, judges what is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fhir_writer.domain.transaction import Existing, plan
from servers import validate_fhir
from unit.fhir_writer.samples import SITE, draft, facts, found, new_uid

LOCAL_CODE = {"value": "CXR2", "scheme": "99LOCAL", "meaning": "Chest, two views"}
ALL_FINDINGS = tuple(
    found(name, state, side)
    for name, state, side in [
        ("atelectasis", "present", "left"),
        ("cardiomegaly", "uncertain", None),
        ("central_line", "present", None),
        ("consolidation", "present", "right"),
        ("endotracheal_tube", "absent", None),
        ("nodule", "present", "both"),
        ("pacemaker", "present", "left"),
        ("pleural_effusion", "absent", None),
        ("pneumothorax", "absent", None),
        ("pulmonary_edema", "uncertain", "both"),
        ("rib_fracture", "present", "right"),
    ]
)
STUDIES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"views": ("PA", "LL")}, {"structured": ALL_FINDINGS}),
    (
        {"views": ("AP",), "description": "Chest portable"},
        {"flags": ("out_of_domain",), "notices": ("Out of the domain.",)},
    ),
    ({"views": (None,), "accession": None}, {"structured": ()}),
    ({"views": ("AP", "PA", "LL"), "procedure": LOCAL_CODE}, {"unsure": ("There may be a nodule.",)}),
    ({"started": "2026-01-05"}, {"impression": ""}),
    (
        {"started": None, "description": None},
        {"findings": 'a < b & "c"\nsecond line\x00\x0b', "impression": "1 < 2 & 'x'"},
    ),
    ({"started": "2026-01-05T07:58:30+05:30"}, {"findings": "Größe 5 mm – unverändert. 肺野清晰"}),
    (
        {"procedure": {"value": "24648-8", "scheme": "LN", "meaning": None}},
        {"structured": (found("new_thing", "present"),)},
    ),
    ({"born": None, "sex": None}, {"model": ("a model with spaces", "v1"), "findings": "word " * 3000}),
]


@pytest.mark.needs("validator")
@pytest.mark.timeout(1000)
def test_ten_studies_pass_the_hl7_validator(tmp_path: Path) -> None:
    files = []
    for index, (study, report) in enumerate(STUDIES):
        uid = new_uid()
        planned = plan(
            facts(uid=uid, **study), draft(uid=uid, **report), SITE, "Patient/p1", None, Existing(), "http://ehr.test"
        )
        assert planned.bundle is not None
        documents = {"bundle": planned.bundle}
        resources = [entry["resource"] for entry in planned.bundle["entry"]]
        documents |= {f"{i}-{resource['resourceType']}": resource for i, resource in enumerate(resources)}
        for name, document in documents.items():
            if name != "bundle" and index not in (0, 1):
                continue  # inside its bundle each resource is judged as well; alone, two studies are enough
            file = tmp_path / f"{index}-{name}.json"
            file.write_text(json.dumps(document))
            files.append(file)
    assert len(files) >= len(STUDIES)
    assert validate_fhir.errors(files) == []
