"""Code systems and codes. `docs/fhir-mapping.md` shows the same tables for people.

SNOMED CT codes must be checked against a licensed release before production use; displays are descriptions of ours.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

SNOMED = "http://snomed.info/sct"
LOINC = "http://loinc.org"
DIAGNOSTIC_SERVICE = "http://terminology.hl7.org/CodeSystem/v2-0074"
IDENTIFIER_TYPE = "http://terminology.hl7.org/CodeSystem/v2-0203"
OBSERVATION_CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
PROVENANCE_ROLE = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"
OBSERVATION_VALUE = "http://terminology.hl7.org/CodeSystem/v3-ObservationValue"
DICOM_UID = "urn:dicom:uid"

# Fixed, never settings: an identifier that changed with a setting would make a second report of every study.
OUR_BASE = "https://echo-cxr.invalid/fhir"
REPORT_SYSTEM = f"{OUR_BASE}/report"
OBSERVATION_SYSTEM = f"{OUR_BASE}/observation"
DEVICE_SYSTEM = f"{OUR_BASE}/model"
PROVENANCE_TAG = f"{OUR_BASE}/provenance"
CONTENT_TAG = f"{OUR_BASE}/content"
LOCAL_FINDING = f"{OUR_BASE}/CodeSystem/finding"
DEFAULT_PATIENT_SYSTEM = f"{OUR_BASE}/mrn"

Json = dict[str, Any]


class Code(NamedTuple):
    """A coding: system, code, display."""

    system: str
    code: str
    display: str

    def coding(self) -> Json:
        """As FHIR writes a Coding."""
        return {"system": self.system, "code": self.code, "display": self.display}


def concept(*codes: Code, text: str | None = None) -> Json:
    """A CodeableConcept."""
    value: Json = {}
    if codes:
        value["coding"] = [code.coding() for code in codes]
    if text:
        value["text"] = text
    return value


class Finding(NamedTuple):
    """How a finding of the model is coded: its concept, the words for it, and where in the body it sits."""

    code: Code
    text: str
    site: Code | None


_LUNG = Code(SNOMED, "39607008", "Lung structure")
_PLEURA = Code(SNOMED, "3120008", "Pleural structure")
_HEART = Code(SNOMED, "80891009", "Heart structure")
_RIB = Code(SNOMED, "113197003", "Bone structure of rib")

FINDINGS: dict[str, Finding] = {
    "atelectasis": Finding(Code(SNOMED, "46621007", "Atelectasis"), "Atelectasis", _LUNG),
    "cardiomegaly": Finding(Code(SNOMED, "8186001", "Cardiomegaly"), "Cardiomegaly", _HEART),
    "central_line": Finding(Code(SNOMED, "52124006", "Central venous catheter"), "Central venous line", None),
    "consolidation": Finding(Code(SNOMED, "95436008", "Lung consolidation"), "Consolidation", _LUNG),
    "endotracheal_tube": Finding(Code(SNOMED, "26412008", "Endotracheal tube"), "Endotracheal tube", None),
    "nodule": Finding(Code(SNOMED, "308689002", "Coin lesion of lung"), "Pulmonary nodule", _LUNG),
    "pacemaker": Finding(Code(SNOMED, "14106009", "Cardiac pacemaker"), "Cardiac pacemaker", None),
    "pleural_effusion": Finding(Code(SNOMED, "60046008", "Pleural effusion"), "Pleural effusion", _PLEURA),
    "pneumothorax": Finding(Code(SNOMED, "36118008", "Pneumothorax"), "Pneumothorax", _PLEURA),
    "pulmonary_edema": Finding(Code(SNOMED, "19242006", "Pulmonary edema"), "Pulmonary edema", _LUNG),
    "rib_fracture": Finding(Code(SNOMED, "33737001", "Fracture of rib"), "Rib fracture", _RIB),
}


def finding(name: str) -> Finding:
    """The coding of a finding; one that no table knows gets a code of our own, never a guessed SNOMED one."""
    known = FINDINGS.get(name)
    if known is not None:
        return known
    words = name.replace("_", " ").capitalize()
    return Finding(Code(LOCAL_FINDING, name, words), words, None)


STATES: dict[str, Code] = {
    "present": Code(SNOMED, "52101004", "Present"),
    "absent": Code(SNOMED, "272519000", "Absent"),
    "uncertain": Code(SNOMED, "373068000", "Undetermined"),
}

LATERALITY = Code(SNOMED, "272741003", "Laterality")
SIDES: dict[str, Code] = {
    "left": Code(SNOMED, "7771000", "Left"),
    "right": Code(SNOMED, "24028007", "Right"),
    "both": Code(SNOMED, "51440002", "Right and left"),
}

CATEGORY = (Code(LOINC, "LP29684-5", "Radiology"), Code(DIAGNOSTIC_SERVICE, "RAD", "Radiology"))
# AIAST came into the code system after R4 was published: a server that validates against R4's own terminology refuses
# it. DEVAST is what R4 has; the tag beside it says in any case that the text is an AI draft.
SECURITY_LABELS = {
    "DEVAST": Code(OBSERVATION_VALUE, "DEVAST", "device asserted"),
    "AIAST": Code(OBSERVATION_VALUE, "AIAST", "Artificial Intelligence asserted"),
}
AI_DRAFT = Code(f"{OUR_BASE}/CodeSystem/label", "ai-draft", "AI draft, not verified")

_PORTABLE_AP = Code(LOINC, "36589-0", "Portable XR Chest AP single view")
_AP = Code(LOINC, "36572-6", "XR Chest AP")
_PA = Code(LOINC, "24648-8", "XR Chest PA upright")
_PA_LATERAL = Code(LOINC, "24647-0", "XR Chest PA and Lateral upright")
_ONE = Code(LOINC, "36554-4", "XR Chest Single view")
_TWO = Code(LOINC, "36643-5", "XR Chest 2 Views")
_ANY = Code(LOINC, "30745-4", "XR Chest Views")

_LATERAL = frozenset({"LL", "RL", "LLD", "RLD", "LATERAL", "LAT"})


def procedure_code(views: Collection[str | None], description: str) -> Code:
    """LOINC code by the ViewPosition of each image; `description` tells a portable film from a fixed one."""
    known = [(view or "").strip().upper() for view in views]
    if len(known) == 1:
        if known == ["AP"]:
            words = description.lower()
            return _PORTABLE_AP if any(w in words for w in ("portable", "mobile", "bedside")) else _AP
        return _PA if known == ["PA"] else _ONE
    if len(known) == 2:
        sides = [view in _LATERAL for view in known]
        return _PA_LATERAL if "PA" in known and any(sides) else _TWO
    return _ANY


_DICOM_SCHEMES = {
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "LN": LOINC,
    "SCT": SNOMED,
    "RADLEX": "http://www.radlex.org",
}


def scheme_system(scheme: str | None) -> str:
    """The URI of a DICOM coding scheme (PS3.16 chapter 8); a private one gets a URI under our base."""
    name = (scheme or "unknown").strip()
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-._") else "-" for c in name)
    return _DICOM_SCHEMES.get(name.upper(), f"{OUR_BASE}/CodeSystem/scheme-{safe}")
