"""What is fetched from an archive: which studies are priors worth having, and why a fetch did not work."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

RADIOGRAPHS = frozenset({"CR", "DX"})
_CHEST = re.compile(r"chest|thora(?!\w*\W*(?:spine|lumb))|lung|pulm|\bcxr\b|torax|poumon|lunge", re.IGNORECASE)
_ELSEWHERE = re.compile(
    r"abd|pelvi|spine|skull|head|neck|sinus|hand|finger|wrist|arm|elbow|humer|shoulder|clavic|hip\b|femur|knee|tibia|leg\b"
    r"|ankle|foot|toe|calcan|extrem|dental|mammo|breast",
    re.IGNORECASE,
)
_DATE = re.compile(r"\d{8}", re.ASCII)

Role = Literal["study", "prior"]


class Problem(Enum):
    """Why an attempt failed: a code, whether trying again may help, and a sentence."""

    NOT_FOUND = ("not_found", False, "the archive knows no such study")
    UNREACHABLE = ("archive_unreachable", True, "the archive cannot be reached")
    REFUSED = ("archive_refused", True, "the archive refused")
    INVALID_ANSWER = ("archive_answer_invalid", True, "the archive's answer cannot be understood")
    INCOMPLETE = ("incomplete", True, "objects that the archive lists did not arrive, or were refused here")
    NOT_KEPT = ("not_kept", True, "an object could not be kept: space, store or database are wanting")
    INTERNAL = ("internal_error", True, "an error of the listener's own")

    def __init__(self, code: str, again: bool, text: str) -> None:
        self.code = code
        self.again = again
        self.text = text


class FetchFailed(Exception):
    """An attempt failed. `detail` has no identifiers."""

    def __init__(self, problem: Problem, detail: str = "") -> None:
        super().__init__(problem.code)
        self.problem = problem
        self.text = f"{problem.text} ({detail})" if detail else problem.text


@dataclass(frozen=True)
class ArchivedStudy:
    """A study as the archive lists it; blanks are empty. `date` and `time` as DICOM writes them."""

    study_instance_uid: str
    accession_number: str = ""
    patient_id: str = ""
    issuer_of_patient_id: str = ""
    date: str = ""
    time: str = ""
    description: str = ""
    modalities: tuple[str, ...] = ()


@dataclass(frozen=True)
class ArchivedSeries:
    """A series as the archive lists it; blanks are empty."""

    series_instance_uid: str
    modality: str = ""
    body_part: str = ""
    description: str = ""


@dataclass(frozen=True)
class Share:
    """How much of one study is here. `expected`: objects that the archive lists."""

    study_instance_uid: str
    role: Role
    expected: int
    held: int


def older_studies(study: ArchivedStudy, others: Iterable[ArchivedStudy], today: str) -> list[ArchivedStudy]:
    """Studies of the same patient that are older and may hold radiographs, newest first. `today`: YYYYMMDD."""
    before = _moment(study) or (today, "")
    found = {
        each.study_instance_uid: each
        for each in others
        if each.study_instance_uid != study.study_instance_uid
        and _same_patient(study, each)
        and (not each.modalities or RADIOGRAPHS.intersection(each.modalities))
        and (moment := _moment(each)) is not None
        and _is_before(moment, before)
    }
    return sorted(found.values(), key=lambda each: (each.date, each.time, each.study_instance_uid), reverse=True)


def may_show_chest(study: ArchivedStudy, series: Sequence[ArchivedSeries]) -> bool:
    """Whether a radiograph of the study shows the chest, or nothing says what it shows, as on a third of real ones."""
    for each in series:
        if each.modality not in RADIOGRAPHS:
            continue
        words = f"{each.body_part} {each.description} {study.description}"
        if _CHEST.search(words) or not (each.body_part or _ELSEWHERE.search(words)):
            return True
    return False


def _same_patient(one: ArchivedStudy, other: ArchivedStudy) -> bool:
    issuers = {one.issuer_of_patient_id, other.issuer_of_patient_id} - {""}
    return bool(one.patient_id) and one.patient_id == other.patient_id and len(issuers) <= 1


def _moment(study: ArchivedStudy) -> tuple[str, str] | None:
    return (study.date, study.time) if _DATE.fullmatch(study.date) else None


def _is_before(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """On the same day only if both say when."""
    if one[0] != other[0]:
        return one[0] < other[0]
    return bool(one[1] and other[1]) and one[1] < other[1]
