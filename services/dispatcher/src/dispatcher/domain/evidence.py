"""What poor headers amount to: body part, view and age, each with the headers that said so.

Headers of real radiographs are poor: body part and view are blank on every third, and a device may write CHEST on all
it takes. So no single attribute decides; what the texts say is collected, and contradictions are named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from dispatcher.domain.study import Image, Study


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


@dataclass(frozen=True)
class Evidence:
    """What was concluded, and which headers said so, as codes: `chest_by_series_description`."""

    part: BodyPart
    sources: tuple[str, ...]


def body_part(image: Image, study: Study, chest_codes: frozenset[str] = frozenset()) -> Evidence:
    """What the image's own texts and the study's texts say together; the image's own weigh more.

    `chest_codes`: procedure codes that mean a chest radiograph, whatever is written beside them.
    """
    own_texts = {
        "body_part_examined": image.body_part_examined,
        "series_description": image.series_description,
        "protocol_name": image.protocol_name,
        "view_position": image.view_position,
    }
    study_texts = {"study_description": study.study_description, "procedure_meaning": study.procedure_meaning}
    texts = own_texts | study_texts
    never = tuple(f"never_by_{name}" for name, text in texts.items() if _NEVER.search(text))
    if never:
        return Evidence(BodyPart.OTHER, never)
    said = {name: _said(text) for name, text in texts.items()}
    if study.procedure_code and study.procedure_code in chest_codes:
        said["procedure_code"] = {BodyPart.CHEST}
    sources = tuple(f"{part.value}_by_{name}" for name, parts in said.items() for part in sorted(parts, key=_by_name))
    own = set().union(*(said[name] for name in own_texts))
    whole = set().union(*(parts for name, parts in said.items() if name not in own_texts))
    return Evidence(_weighed(own, whole), sources)


def _by_name(part: BodyPart) -> str:
    return part.value


def _weighed(own: set[BodyPart], whole: set[BodyPart]) -> BodyPart:
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


_CHILD = re.compile(
    r"(?<![a-z])(?:p(?:a)?ediatr\w*|neonat\w*|newborn\w*|infant\w*|nicu|picu|child(?:ren)?|p[aä]diatr\w*)(?![a-z])|新生儿|小児|儿童",
    re.IGNORECASE,
)


def child_by_words(study: Study) -> bool:
    """Whether the examination's name says that the patient is a child."""
    texts = [study.study_description, study.procedure_meaning]
    texts += [text for image in study.images for text in (image.series_description, image.protocol_name)]
    return any(_CHILD.search(text) for text in texts)


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
