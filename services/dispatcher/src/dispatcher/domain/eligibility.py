"""Rules that decide which studies get a report, and on which images: pure functions of what the headers say.

Where the headers leave a doubt, the site's setting answers: report all the same, ask a person, or skip. Whatever it is,
the decision names its reason and the evidence by code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dispatcher.domain.evidence import BodyPart, Evidence, View, age_years, body_part, child_by_words, view
from dispatcher.domain.study import Image, Study

Priority = Literal["stat", "routine"]
Action = Literal["report", "ask", "skip"]
SeveralFrontals = Literal["last", "first", "ask"]

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
    "body_part_unknown": "The headers do not name the body part of any image that may be the frontal view.",
    "no_frontal_view": "The study holds no frontal view of the chest (lateral, oblique or decubitus views only).",
    "view_unknown": "Nothing in the headers says that a view is frontal.",
    "paediatric": "The patient is younger than the age from which studies are reported here.",
    "age_unknown": "The headers do not say how old the patient is.",
    "old_study": "The study was taken longer ago than new studies are: it looks like a prior sent for comparison.",
    "fetched_as_prior": "The study was fetched from the archive for comparison with a newer one.",
    "burned_in_annotation": "The images have text burned into the picture, which may name a patient.",
    "several_frontals": "The study holds several frontal views, and a person chooses here which one is reported.",
    "declined_by_person": "A person decided that this study gets no report.",
    "discarded_by_person": "A person gave up the report that could not be made.",
}
"""Reason codes of `imaging.study.skipped` with the sentence a person reads."""


@dataclass(frozen=True)
class Policy:
    """A site's choices."""

    modalities: frozenset[str] = frozenset({"CR", "DX"})
    missing_evidence: Action = "report"
    conflicting_evidence: Action = "skip"
    minimum_age_years: int = 18
    younger_patients: Action = "skip"
    unknown_age: Action = "report"
    maximum_study_age_days: int = 0
    """0: no limit."""
    old_studies: Action = "skip"
    burned_in_annotation: Action = "report"
    several_frontals: SeveralFrontals = "last"
    chest_procedure_codes: frozenset[str] = frozenset()
    max_pixels: int = 64_000_000
    max_images: int = 2
    stat_calling_ae_titles: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Skip:
    """No report, for this reason."""

    code: str
    evidence: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One plain sentence for a person."""
        return REASONS[self.code]


@dataclass(frozen=True)
class Select:
    """A report on these images, in this order. `assumed` names what was missing and taken for granted."""

    images: tuple[Image, ...]
    priority: Priority
    assumed: tuple[str, ...] = field(default=())
    evidence: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Ask:
    """A person decides: for these reasons it is in doubt whether `select` is reported."""

    codes: tuple[str, ...]
    select: Select

    @property
    def text(self) -> str:
        """The reasons as sentences."""
        return " ".join(REASONS[code] for code in self.codes)


class _Doubts:
    """What is not certain, each weighed by the site's setting."""

    def __init__(self) -> None:
        self._by_action: dict[Action, list[str]] = defaultdict(list)

    def weigh(self, code: str, action: Action) -> None:
        self._by_action[action].append(code)

    def skip(self, evidence: tuple[str, ...]) -> Skip | None:
        return Skip(self._by_action["skip"][0], evidence) if self._by_action["skip"] else None

    @property
    def assumed(self) -> tuple[str, ...]:
        return tuple(self._by_action["report"])

    @property
    def asked(self) -> tuple[str, ...]:
        return tuple(self._by_action["ask"])


def decide(study: Study, policy: Policy) -> Select | Ask | Skip:
    """Whether and on which images a report is written. The first rule that leaves no image gives the reason."""
    if study.fetched_as_prior:  # whatever its age, and whatever the site says about old studies
        return Skip("fetched_as_prior")
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

    doubts = _Doubts()
    parts = {image: body_part(image, study, policy.chest_procedure_codes) for image in images}
    views = {image: view(image) for image in images}
    part, chest = _chest(images, parts, views)
    if part is BodyPart.UNKNOWN:
        doubts.weigh("body_part_unknown", policy.missing_evidence)
    elif part is BodyPart.CONFLICT:
        doubts.weigh("conflicting_body_part", policy.conflicting_evidence)
    elif part is BodyPart.OTHER:
        doubts.weigh("not_chest", "skip")
    evidence = tuple(dict.fromkeys(source for image in chest for source in parts[image].sources))
    if skip := doubts.skip(evidence):
        return skip
    _weigh_patient_and_date(study, policy, doubts)
    if skip := doubts.skip(evidence):
        return skip

    candidates = [image for image in chest if parts[image].part is part]
    frontal = [image for image in candidates if views[image] is View.FRONTAL]
    if frontal:
        evidence = (*evidence, "frontal_by_headers")
    else:
        frontal = [image for image in candidates if views[image] is View.UNKNOWN]
        if not frontal:
            return Skip("no_frontal_view", evidence)
        doubts.weigh("view_unknown", policy.missing_evidence)
    frontal = _in_order(frontal, policy.several_frontals)
    if len(frontal) > 1 and policy.several_frontals == "ask":
        doubts.weigh("several_frontals", "ask")
    lateral = _in_order([image for image in chest if views[image] is View.LATERAL], policy.several_frontals)
    # One of each before a second of any: what a model that takes two images expects.
    chosen = (*frontal[:1], *lateral[:1], *frontal[1:], *lateral[1:])[: policy.max_images]
    if any(image.burned_in_annotation for image in chosen):
        doubts.weigh("burned_in_annotation", policy.burned_in_annotation)
    if skip := doubts.skip(evidence):
        return skip
    select = Select(chosen, _priority(study, policy), doubts.assumed, evidence)
    return Ask(doubts.asked, select) if doubts.asked else select


def _chest(
    images: Sequence[Image], parts: Mapping[Image, Evidence], views: Mapping[Image, View]
) -> tuple[BodyPart, list[Image]]:
    """The images that count as the chest's, and what is known of the body part where the frontal view has to be.

    As a rule the headers that say the most decide. But devices fill in the header of one image and leave that of the
    next blank: where those that say "chest" hold no view that may be frontal, the next best ones that do are added.
    """
    of_part = {part: [image for image in images if parts[image].part is part] for part in BodyPart}
    ranked = [part for part in (BodyPart.CHEST, BodyPart.UNKNOWN, BodyPart.CONFLICT) if of_part[part]]
    if not ranked:
        return BodyPart.OTHER, of_part[BodyPart.OTHER]
    best = ranked[0]
    for part in ranked:
        if any(views[image] in (View.FRONTAL, View.UNKNOWN) for image in of_part[part]):
            return part, of_part[part] if part is best else [*of_part[best], *of_part[part]]
    return best, of_part[best]


def _weigh_patient_and_date(study: Study, policy: Policy, doubts: _Doubts) -> None:
    age = age_years(study)
    if policy.minimum_age_years > 0:
        if (age is not None and age < policy.minimum_age_years) or (age is None and child_by_words(study)):
            doubts.weigh("paediatric", policy.younger_patients)
        elif age is None:
            doubts.weigh("age_unknown", policy.unknown_age)
    if 0 < policy.maximum_study_age_days < (study.received_on - study.taken_on).days:
        doubts.weigh("old_study", policy.old_studies)


def _reportable(image: Image, policy: Policy) -> bool:
    # A device may send a radiograph (DX) in a Secondary Capture class: the modality is what the technologist chose.
    return image.modality in policy.modalities if image.modality else image.sop_class_uid in _RADIOGRAPH_CLASSES


def _priority(study: Study, policy: Policy) -> Priority:
    return "stat" if policy.stat_calling_ae_titles.intersection(study.calling_ae_titles) else "routine"


def _in_order(images: Sequence[Image], which: SeveralFrontals) -> list[Image]:
    """What was made for reading before what was made for processing, PA before others, then by when it was taken.

    The last of several is the better one as a rule: an exposure is repeated when the first was no good.
    """
    by_time = sorted(
        images,
        key=lambda image: (
            image.acquired_at,
            image.instance_number if image.instance_number is not None else -1,
            image.sop_instance_uid,
        ),
        reverse=which == "last",
    )
    ordered = sorted(
        by_time,
        key=lambda image: (image.sop_class_uid == _FOR_PROCESSING, not image.view_position.upper().startswith("PA")),
    )
    finished = [image for image in ordered if image.sop_class_uid != _FOR_PROCESSING]
    return finished or ordered
