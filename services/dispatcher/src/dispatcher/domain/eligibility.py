"""Rules that decide which studies get a report, and on which images: pure functions of what the headers say.

Headers of real radiographs are poor: body part and view are blank on every third, and a device may write CHEST on all
it takes. So no single attribute decides. What the texts say is collected, contradictions are named, and where nothing
is said the site's setting answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from typing import Any, Literal

Priority = Literal["stat", "routine"]
MissingEvidence = Literal["report", "skip"]

# PS3.6 Annex A: classes that say "radiograph" when the modality is blank.
_RADIOGRAPH_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography
        "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray, for presentation
        "1.2.840.10008.5.1.4.1.1.1.1.1",  # Digital X-Ray, for processing
    }
)
_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"

REASONS: Mapping[str, str] = {
    "modality_not_reportable": "The study holds no image of a modality that is reported here (plain radiographs).",
    "no_pixel_data": "The radiographs of the study carry no pixel data.",
    "localiser_only": "The study holds localiser images only.",
    "multi_frame_only": "The study holds image sequences only; plain radiographs of one frame are reported.",
    "image_too_large": "The images have more pixels than the limit allows.",
    "not_chest": "The headers name a body part other than the chest.",
    "conflicting_body_part": "The headers name the chest in one place and another body part in another.",
    "body_part_unknown": "The headers do not say which body part is shown, and such studies are not reported here.",
    "no_frontal_view": "The study holds no frontal view of the chest (lateral, oblique or decubitus views only).",
    "view_unknown": "Nothing in the headers says that a view is frontal, and such studies are not reported here.",
    "paediatric": "The patient is younger than the age from which studies are reported here.",
}
"""Reason codes of `imaging.study.skipped` with the sentence a person reads."""


class View(Enum):
    """Projection of one radiograph, as far as it matters here."""

    FRONTAL = "frontal"
    LATERAL = "lateral"
    OTHER = "other"
    UNKNOWN = "unknown"


class BodyPart(Enum):
    """What the texts about one radiograph amount to."""

    CHEST = "chest"
    OTHER = "other"
    CONFLICT = "conflict"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Policy:
    """A site's choices."""

    modalities: frozenset[str] = frozenset({"CR", "DX"})
    missing_evidence: MissingEvidence = "report"
    minimum_age_years: int = 18
    max_pixels: int = 64_000_000
    max_images: int = 2
    stat_calling_ae_titles: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Image:
    """What the rules need to know of one instance; blanks are empty strings or None."""

    sop_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    object_ref: str
    sha256: str
    modality: str
    body_part_examined: str
    view_position: str
    series_description: str
    protocol_name: str
    image_type: tuple[str, ...]
    rows: int | None
    columns: int | None
    number_of_frames: int | None
    has_pixel_data: bool
    instance_number: int | None

    def reference(self) -> dict[str, str | None]:
        """The image as `imaging.report.requested` names it."""
        return {
            "sop_instance_uid": self.sop_instance_uid,
            "series_instance_uid": self.series_instance_uid,
            "object_ref": self.object_ref,
            "sha256": self.sha256,
            "view_position": self.view_position or None,
        }


@dataclass(frozen=True)
class Study:
    """What the rules need to know of one version of a study."""

    study_description: str
    procedure_meaning: str
    patient_age: str
    birth_date: date | None
    taken_on: date
    calling_ae_titles: tuple[str, ...]
    images: tuple[Image, ...]


@dataclass(frozen=True)
class Skip:
    """No report, for this reason."""

    code: str

    @property
    def text(self) -> str:
        """One plain sentence for a person."""
        return REASONS[self.code]


@dataclass(frozen=True)
class Select:
    """A report on these images, in this order. `assumed` names evidence that was missing and taken for granted."""

    images: tuple[Image, ...]
    priority: Priority
    assumed: tuple[str, ...] = field(default=())


def study_of(data: Mapping[str, Any]) -> Study:
    """The data of an `imaging.study.completed` event as the rules see it."""
    patient, code = data["patient"], data["order"]["procedure_code"]
    taken = data["study_started_at"] or ""
    return Study(
        study_description=data["study_description"] or "",
        procedure_meaning=(code or {}).get("meaning") or "",
        patient_age=patient["patient_age"] or "",
        birth_date=_date(patient["patient_birth_date"]),
        taken_on=_date(taken[:10]) or date.fromisoformat(data["first_received_at"][:10]),
        calling_ae_titles=tuple(data["calling_ae_titles"]),
        images=tuple(_image_of(instance) for instance in data["instances"]),
    )


def _image_of(data: Mapping[str, Any]) -> Image:
    return Image(
        sop_instance_uid=data["sop_instance_uid"],
        series_instance_uid=data["series_instance_uid"],
        sop_class_uid=data["sop_class_uid"],
        object_ref=data["object_ref"],
        sha256=data["sha256"],
        modality=(data["modality"] or "").strip().upper(),
        body_part_examined=data["body_part_examined"] or "",
        view_position=(data["view_position"] or "").strip(),
        series_description=data["series_description"] or "",
        protocol_name=data["protocol_name"] or "",
        image_type=tuple(part.strip().upper() for part in data["image_type"]),
        rows=data["rows"],
        columns=data["columns"],
        number_of_frames=data["number_of_frames"],
        has_pixel_data=data["has_pixel_data"],
        instance_number=data["instance_number"],
    )


def decide(study: Study, policy: Policy) -> Select | Skip:
    """Whether and on which images a report is written. The first rule that leaves no image gives the reason."""
    assumed: list[str] = []
    images: Sequence[Image] = study.images
    filters: Mapping[str, Callable[[Image], bool]] = {
        "modality_not_reportable": lambda image: _reportable(image, policy),
        "no_pixel_data": lambda image: image.has_pixel_data,
        "localiser_only": lambda image: not {"LOCALIZER", "LOCALISER", "SCOUT"} & set(image.image_type),
        "multi_frame_only": lambda image: (image.number_of_frames or 1) <= 1,
        "image_too_large": lambda image: (image.rows or 0) * (image.columns or 0) <= policy.max_pixels,
    }
    for code, keep in filters.items():
        images = [image for image in images if keep(image)]
        if not images:
            return Skip(code)

    parts = {image: body_part(image, study) for image in images}
    chest = [image for image in images if parts[image] is BodyPart.CHEST]
    if not chest:
        chest = [image for image in images if parts[image] is BodyPart.UNKNOWN]
        if not chest:
            return Skip("conflicting_body_part" if BodyPart.CONFLICT in parts.values() else "not_chest")
        if policy.missing_evidence == "skip":
            return Skip("body_part_unknown")
        assumed.append("body_part_unknown")

    age = age_years(study)
    if age is not None and age < policy.minimum_age_years:
        return Skip("paediatric")

    views = {image: view(image) for image in chest}
    frontal = [image for image in chest if views[image] is View.FRONTAL]
    if not frontal:
        frontal = [image for image in chest if views[image] is View.UNKNOWN]
        if not frontal:
            return Skip("no_frontal_view")
        if policy.missing_evidence == "skip":
            return Skip("view_unknown")
        assumed.append("view_unknown")
    lateral = [image for image in chest if views[image] is View.LATERAL]
    chosen = (*_in_order(frontal), *_in_order(lateral))[: policy.max_images]
    return Select(chosen, _priority(study, policy), tuple(assumed))


def _reportable(image: Image, policy: Policy) -> bool:
    # A device may send a radiograph (DX) in a Secondary Capture class: the modality is what the technologist chose.
    return image.modality in policy.modalities if image.modality else image.sop_class_uid in _RADIOGRAPH_CLASSES


def _priority(study: Study, policy: Policy) -> Priority:
    return "stat" if policy.stat_calling_ae_titles.intersection(study.calling_ae_titles) else "routine"


def _in_order(images: Iterable[Image]) -> list[Image]:
    """What was made for reading before what was made for processing, PA before others, then as they were taken."""
    ordered = sorted(
        images,
        key=lambda image: (
            image.sop_class_uid == _FOR_PROCESSING,
            not image.view_position.upper().startswith("PA"),
            image.instance_number if image.instance_number is not None else 2**31,
            image.sop_instance_uid,
        ),
    )
    finished = [image for image in ordered if image.sop_class_uid != _FOR_PROCESSING]
    return finished or ordered


# --- body part -----------------------------------------------

_CHEST = re.compile(
    r"(?<![a-z])(?:chest|thora[xc]|thoracic|torax|torace|lungs?|cxr|pulmo|poumons?|brustkorb|lunge|pecho|pulm[aoó])"
    r"|胸|肺",
    re.IGNORECASE,
)
# The thoracic spine and the ribs are examinations of their own, whatever else the word says.
_NOT_THE_CHEST_ITSELF = re.compile(
    r"(?<![a-z])(?:t[\s-]?spine|(?:dorsal|thora\w*|brust)[\s-]*(?:lumbar\s+)?(?:spine|wirbels\w*|vertebra\w*))|胸椎",
    re.IGNORECASE,
)
_OTHER = re.compile(
    r"(?<![a-z])(?:abdom|kub(?![a-z])|pelvi[sc]|hips?(?![a-z])|femur|knee|tibia|fibula|ankle|foot|feet|toes?(?![a-z])|"
    r"calcan|heel|hands?(?![a-z])|wrist|fingers?|thumb|forearm|elbow|humer|shoulder|clavic|scapula|extrem|leg(?![a-z])|"
    r"legs(?![a-z])|arms?(?![a-z])|[cltsb]?[\s-]?spine|cervical|lumbar|sacr|coccy|vertebra|skull|head(?![a-z])|sinus|"
    r"nasal|orbit|facial|mandib|jaw|neck|breast|mammo|ribs?(?![a-z])|sternum|patella|radius|ulna|bone\s*age|scoliosis|"
    r"babygram|wirbels|becken|genou|rodilla|mano(?![a-z])|wholebody|whole body)|腹|骨盆|膝|手|足|腰椎|颈椎|胸椎|頸椎",
    re.IGNORECASE,
)
# Films of teeth and of animals come with CHEST in BodyPartExamined, too: these words outrank all others.
_NEVER = re.compile(
    r"(?<![a-z])(?:dental|dent(?:o|al|ist)\w*|tooth|teeth|panoramic|orthopantom\w*|opg(?![a-z])|bite\s?wing|periapical|"
    r"veterinar\w*|canine|feline|equine|bovine|dogs?(?![a-z])|cats?(?![a-z])|phantom\s+qc|quality\s+control)",
    re.IGNORECASE,
)


def _said(text: str) -> set[BodyPart]:
    found = set()
    rest, spines = _NOT_THE_CHEST_ITSELF.subn(" ", text)
    if _CHEST.search(rest):
        found.add(BodyPart.CHEST)
    if spines or _OTHER.search(rest):
        found.add(BodyPart.OTHER)
    return found


def body_part(image: Image, study: Study) -> BodyPart:
    """What the image's own texts and the study's texts say together; the image's own weigh more."""
    own_texts = (image.body_part_examined, image.series_description, image.protocol_name, image.view_position)
    study_texts = (study.study_description, study.procedure_meaning)
    if any(_NEVER.search(text) for text in (*own_texts, *study_texts)):
        return BodyPart.OTHER
    own = set().union(*(_said(text) for text in own_texts))
    whole = set().union(*(_said(text) for text in study_texts))
    if len(own) == 1:
        (part,) = own
        return part if part in whole or not whole else BodyPart.CONFLICT
    if len(whole) == 1:
        return next(iter(whole))
    return BodyPart.CONFLICT if own else BodyPart.UNKNOWN


# --- view ----------------------------------------------------

# PS3.3 C.8.11.5 (DX Positioning) and what people type instead.
_VIEWS: dict[View, re.Pattern[str]] = {
    View.OTHER: re.compile(
        r"(?<![a-z])(?:[rl]ld(?![a-z])|decub\w*|[rl][lap]o(?![a-z])|obli\w*|apical|lordotic|xtl)", re.IGNORECASE
    ),
    View.LATERAL: re.compile(
        r"(?<![a-z])(?:ll|rl|lat|lateral\w*|lt\s*lat|rt\s*lat|seitlich|profil)(?![a-z])|侧位|側位", re.IGNORECASE
    ),
    View.FRONTAL: re.compile(
        r"(?<![a-z])(?:pa|ap|a\.p\.|p\.a\.|frontal|postero\W?anterior|antero\W?posterior)(?![a-z])|正位|后前位",
        re.IGNORECASE,
    ),
}


def view(image: Image) -> View:
    """The projection by ViewPosition, else by series description and protocol name where these name only one."""
    for text in (image.view_position, image.series_description, image.protocol_name):
        spaced = text.replace("_", " ")
        named = [kind for kind, pattern in _VIEWS.items() if pattern.search(spaced)]
        if View.OTHER in named:  # "AP lateral decubitus" is neither of the two
            return View.OTHER
        if len(named) == 1:
            return named[0]
        # "PA and lateral" names the whole examination, not this image.
    return View.UNKNOWN


# --- age -----------------------------------------------------

_AGE = re.compile(r"^\s*(\d{1,3})\s*([DWMY])\s*$", re.IGNORECASE)
_YEARS_PER = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}
_OLDEST = 120


def age_years(study: Study) -> float | None:
    """Age when the study was taken, by birth date, else PatientAge (PS3.5, VR AS); None where neither is credible."""
    born, taken = study.birth_date, study.taken_on
    if born is not None and born <= taken:
        years = taken.year - born.year - ((taken.month, taken.day) < (born.month, born.day))
        if years <= _OLDEST:  # de-identified objects carry 1900-01-01 and the like
            return float(years)
    match = _AGE.match(study.patient_age)
    if match:
        years_by_age = int(match[1]) * _YEARS_PER[match[2].upper()]
        if years_by_age <= _OLDEST:
            return years_by_age
    return None


def _date(text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        return None
