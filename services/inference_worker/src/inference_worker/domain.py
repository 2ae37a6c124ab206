"""What the worker says: a draft report as events carry it, the sentences shown for its flags, and the error codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

FAULTS: Mapping[str, str] = {
    "object_missing": "An image of the study is not in the object store.",
    "object_corrupt": "An image of the study is not the one that was received: its checksum differs.",
    "not_dicom": "An image of the study is not a DICOM file that can be read.",
    "no_pixel_data": "An image of the study carries no pixel data.",
    "multi_frame": "An image of the study is a sequence of frames; plain radiographs of one frame are reported.",
    "image_too_large": "An image of the study is larger than the limit allows.",
    "pixels_undecodable": "The pixel data of an image of the study cannot be decoded.",
    "image_unusable": "The model cannot use an image of the study: its shape is no radiograph's.",
    "not_a_frontal_chest": (
        "The headers do not say what the image shows, and it does not look like a frontal chest radiograph."
    ),
    "wrong_model_version": "The report was asked of a model version that this worker does not run.",
    "deadline_exceeded": "The report was not finished within the time allowed.",
    "internal_error": "The worker failed in an unexpected way.",
}
"""Error codes of `imaging.report.failed` with the sentence a person reads."""

_RETRYABLE = frozenset({"object_missing", "wrong_model_version", "deadline_exceeded", "internal_error"})

IN_DOUBT = frozenset({"body_part_unknown", "view_unknown", "conflicting_body_part"})
"""What a request may take for granted and the picture has to show then."""

NOTICES: Mapping[str, str] = {
    "out_of_domain": ("This image lies outside the domain the model was trained on; the draft must not be relied on."),
    "image_not_read": "The model reads fewer images than were chosen of this study; the last ones were not read.",
    "low_confidence": "The model was unsure of some sentences of this draft.",
    "repeated_subword": "Some words of this draft are garbled.",
    "repeated_word": "Some words of this draft are repeated without sense.",
    "repeated_punctuation": "Some marks of this draft are repeated without sense.",
    "unknown_word": "This draft has words that the model's training reports never had.",
    "word_order": "Some words of this draft stand in an order that the model's training reports never had.",
    "contradiction": "Findings and impression of this draft contradict each other; compare them with the image.",
    "loop": "Parts of this draft repeat themselves.",
    "truncated": "The draft was cut off at its greatest length.",
    "missing_findings": "The draft has no findings section.",
    "missing_impression": "The draft has no impression section.",
    "empty_findings": "The findings section of the draft is empty.",
    "empty_impression": "The impression section of the draft is empty.",
    "repeated_findings": "The draft has more than one findings section.",
    "repeated_impression": "The draft has more than one impression section.",
}
"""Flags of a report with the plain sentence shown beside it."""


class Fault(Exception):
    """The study cannot be reported as it is; `code` is one of `FAULTS`."""

    def __init__(self, code: str) -> None:
        super().__init__(f"{code}: {FAULTS[code]}")
        self.code = code

    @property
    def text(self) -> str:
        """One plain sentence for a person."""
        return FAULTS[self.code]

    @property
    def retryable(self) -> bool:
        """Whether the same study may succeed another time."""
        return self.code in _RETRYABLE


@dataclass(frozen=True)
class DraftSentence:
    """One sentence of a draft; `confidence` in 0..1."""

    section: Literal["findings", "impression", "other"]
    text: str
    confidence: float
    flags: tuple[str, ...]


@dataclass(frozen=True)
class DraftFinding:
    """What the draft says about one finding; `laterality` is the patient's side."""

    finding: str
    state: Literal["present", "absent", "uncertain"]
    laterality: Literal["left", "right", "both"] | None
    sentence: str


@dataclass(frozen=True)
class Draft:
    """A draft report as the model gave it."""

    text: str
    findings: str
    impression: str
    sentences: tuple[DraftSentence, ...]
    structured_findings: tuple[DraftFinding, ...]
    flags: tuple[str, ...]
    out_of_domain_score: float | None
    tokens: int
    forward_passes: int
    tokens_per_forward: float


@dataclass(frozen=True)
class Timings:
    """Seconds: from queueing to the start of work, on the pixels, in the model."""

    queue_s: float
    pixels_s: float
    generate_s: float


def notices(flags: Sequence[str]) -> list[str]:
    """A plain sentence for every flag, a new flag's own name if no sentence is known for it."""
    return [NOTICES.get(flag, f"The draft carries the flag {flag}.") for flag in dict.fromkeys(flags)]


def generated_data(
    request: Mapping[str, Any], draft: Draft, timings: Timings, model_id: str, model_version: str
) -> dict[str, Any]:
    """The data of `imaging.report.generated` beside the study's own two fields."""
    return {
        "job_id": request["job_id"],
        "attempt": request["attempt"],
        "model": {"id": model_id, "version": model_version},
        "text": draft.text,
        "findings": draft.findings,
        "impression": draft.impression,
        "sentences": [
            {
                "section": sentence.section,
                "text": sentence.text,
                "confidence": _share(sentence.confidence),
                "flags": list(sentence.flags),
            }
            for sentence in draft.sentences
        ],
        "flags": list(dict.fromkeys(draft.flags)),
        "notices": notices(draft.flags),
        "structured_findings": [
            {
                "finding": finding.finding,
                "state": finding.state,
                "laterality": finding.laterality,
                "confidence": _confidence_of(finding, draft.sentences),
                "sentence": finding.sentence,
            }
            for finding in draft.structured_findings
        ],
        "images": [
            {"sop_instance_uid": image["sop_instance_uid"], "series_instance_uid": image["series_instance_uid"]}
            for image in request["images"]
        ],
        "timings": {
            "queue_s": round(max(0.0, timings.queue_s), 4),
            "pixels_s": round(timings.pixels_s, 4),
            "generate_s": round(timings.generate_s, 4),
            "total_s": round(max(0.0, timings.queue_s) + timings.pixels_s + timings.generate_s, 4),
        },
        "tokens": {
            "generated": draft.tokens,
            "forward_passes": draft.forward_passes,
            "tokens_per_forward": round(draft.tokens_per_forward, 4),
        },
        "out_of_domain_score": draft.out_of_domain_score,
    }


def _share(value: float) -> float:
    return round(min(1.0, max(0.0, value)), 4)


def _confidence_of(finding: DraftFinding, sentences: Sequence[DraftSentence]) -> float:
    """Confidence of the sentence that states the finding, the lowest of several; 0 when none is found."""
    stated = finding.sentence.strip().rstrip(".")
    values = [sentence.confidence for sentence in sentences if stated and stated in sentence.text]
    return _share(min(values, default=0.0))
