"""The anatomical order of a normalised report: which region a sentence speaks of, and what is said of a normal one."""

from __future__ import annotations

import re
from typing import Final, Literal

Region = Literal["thorax", "mediastinum", "lungs", "heart", "hila", "pleura", "bones", "devices"]

#: The fixed order of a normalised report.
REGIONS: Final[tuple[Region, ...]] = (
    "thorax",
    "mediastinum",
    "lungs",
    "heart",
    "hila",
    "pleura",
    "bones",
    "devices",
)

#: What is written for a region that a report by exception passes over.
DEFAULTS: Final[dict[Region, str]] = {
    "thorax": "The thorax is symmetric.",
    "mediastinum": "The mediastinum and trachea are midline.",
    "lungs": "The lungs are clear.",
    "heart": "The heart is normal in size.",
    "hila": "The hila are normal.",
    "pleura": "The costophrenic angles are sharp.",
    "bones": "The bones are intact.",
    "devices": "No devices are seen.",
}
NO_PNEUMOTHORAX: Final = "No pneumothorax."

#: Findings of the extractor by their region.
REGION_OF: Final[dict[str, Region]] = {
    "cardiomegaly": "heart",
    "pleural_effusion": "pleura",
    "pneumothorax": "lungs",
    "consolidation": "lungs",
    "pulmonary_edema": "lungs",
    "nodule": "lungs",
    "atelectasis": "lungs",
    "rib_fracture": "bones",
    "pacemaker": "devices",
    "endotracheal_tube": "devices",
    "central_line": "devices",
}

#: Words that place a sentence, the more telling regions first.
_WORDS: Final[tuple[tuple[Region, str], ...]] = (
    (
        "devices",
        r"\b(?:tubes?|catheters?|lines?(?! of)|piccs?|cvcs?|port(?:-?a-?cath)?|pace-?\s?maker\w*|pac(?:er"
        r"|ing)|a?icd"
        r"|defibrillator|leads?|wires?|clips?|staples?|stents?|drains?|devices?|hardware|prosthe\w+"
        r"|valve replacement"
        r"|intubat\w+|extubat\w+|tracheostomy|loop recorder|electrodes?|implant\w*|ett|ngt?|ports?|swan-?\s?ganz"
        r"|foreign bod(?:y|ies)|sutures?|port catheter|coils?|balloon pump|impella)\b",
    ),
    (
        "bones",
        r"\b(?:fractur\w+|ribs?|bon(?:e|y|es)|osseous|skelet\w+|clavic\w+|scapul\w+|stern(?:um|al)"
        r"|vertebra\w*|spin(?:e|al)"
        r"|scoliosis|kypho\w*|degenerative|osteo\w+|humer\w+|shoulders?|spondyl\w+|dislocat\w+|lytic|sclerotic"
        r"|compression deformit\w+|osteophyt\w+)\b",
    ),
    (
        "pleura",
        r"\b(?:pleural? (?:effusions?|fluid|space\w*|thicken\w+|plaque\w*)|effusions?|costophrenic"
        r"|cp angles?|diaphragm\w*"
        r"|hemidiaphragm\w*|hydrothorax|hydropneumothorax|pneumoperitoneum|subdiaphragmatic|free air|sulc(?:us|i)"
        r"|subpulmonic|(?:bi)?apical cap\w*|pleura)\b",
    ),
    (
        "hila",
        r"\b(?:hil(?:um|a|ar)|hila are|pulmonary arter(?:y|ies)|perihilar lymph\w*)\b",
    ),
    (
        "heart",
        r"\b(?:heart|cardiac|cardiomegaly|cardio(?:thoracic|mediastinal|pericardial)|pericard\w+|ventric\w+"
        r"|atri(?:um|al))\b",
    ),
    (
        "mediastinum",
        r"\b(?:mediastin\w+|trache\w*|aort(?:a|ic)|paratracheal|carina\w*|hiatal|hiatus|esophag\w+"
        r"|oesophag\w+|goit(?:er|re)"
        r"|pneumomediastinum|thyroid|thymus|azygos|lymphadenopathy)\b",
    ),
    (
        "lungs",
        r"\b(?:lungs?|pulmonary|pneumothora\w+|consolidat\w+|opacit\w+|opacific\w+|infiltrat\w+|pneumoni\w+"
        r"|atelecta\w+"
        r"|nodul\w+|o?edema|mass(?:es)?|granuloma\w*|interstiti\w+|emphysema\w*|hyperinflat\w+|aerat\w+"
        r"|inflat\w+|air-?\s?space"
        r"|collapse\w*|lobes?|lobar|bases?|basal|basilar|apex|apices|apical|bronch\w+|scar\w*|fibro\w+"
        r"|vascular\w*|vessels?"
        r"|congestion|parenchym\w+|cavit\w+|cyst\w*|bulla\w*|volumes?|fissure\w*|retrocardiac|zones?"
        r"|reticul\w+|copd|kerley"
        r"|septal|haze|hazy|lesions?|markings|lingula\w*|coin|rll|lll|rul|lul|rml|inspirat\w+)\b",
    ),
    (
        "thorax",
        r"\b(?:thorax|chest wall|soft tissues?|subcutaneous|breast\w*|mastectom\w+|axilla\w*|rotat\w+"
        r"|pectus|bony cage|chest"
        r"|rib cage|skin folds?|habitus|inspiratory)\b",
    ),
)
_PATTERNS: Final = {region: re.compile(pattern, re.IGNORECASE) for region, pattern in _WORDS}
#: Regions that the first words of a sentence may name.
_SUBJECTS: Final[tuple[Region, ...]] = ("heart", "mediastinum", "hila")


def region_of(sentence: str) -> Region | None:
    """The region that a sentence speaks of, None when no word places it.

    A subject at the head of the sentence decides ("The heart ..."); else the most telling word does.
    """
    opening = " ".join(sentence.split()[:3])
    if not _PATTERNS["devices"].search(sentence):
        for region in _SUBJECTS:
            if _PATTERNS[region].search(opening):
                return region
    return next((region for region, pattern in _PATTERNS.items() if pattern.search(sentence)), None)
