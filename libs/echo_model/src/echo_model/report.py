"""What the engine hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from echo_model.prompt import SectionName


@dataclass(frozen=True)
class Sentence:
    """One sentence. `confidence` is the mean of its tokens' probabilities, `min_confidence` the lowest."""

    text: str
    section: SectionName
    confidence: float
    min_confidence: float
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Stats:
    """Cost of one report. Times in seconds; `forward_passes` counts decoding passes without the prompt's.

    `queue_seconds` is time spent waiting for a slot and for other requests' steps.
    """

    prompt_tokens: int
    tokens: int
    blocks: int
    forward_passes: int
    queue_seconds: float
    preprocess_seconds: float
    prefill_seconds: float
    decode_seconds: float
    total_seconds: float

    @property
    def tokens_per_forward(self) -> float:
        """Tokens kept for each decoding pass."""
        return self.tokens / self.forward_passes

    @property
    def tokens_per_second(self) -> float:
        """Tokens kept for each second of decoding."""
        return self.tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True)
class StreamedBlock:
    """One decoded block while the report is still in the making; `text` is what it added."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    confidences: tuple[float, ...]
    ended: bool


@dataclass(frozen=True)
class Report:
    """A draft report.

    `flags` holds section errors (`missing_impression`, ...), `truncated`, `out_of_domain`, and every flag that a
    sentence carries. `domain_score` is the distance from the training images (above 1 is out of domain), None when the
    checkpoint brings no statistics. `structured_findings` maps finding names to what the text says about them.
    """

    text: str
    findings: str
    impression: str
    sentences: tuple[Sentence, ...]
    token_ids: tuple[int, ...]
    confidences: tuple[float, ...]
    flags: tuple[str, ...]
    structured_findings: Mapping[str, Any]
    domain_score: float | None
    model_id: str
    revision: str
    stats: Stats

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; token ids and per-token confidences are left out."""
        return {
            "text": self.text,
            "findings": self.findings,
            "impression": self.impression,
            "sentences": [asdict(sentence) for sentence in self.sentences],
            "flags": list(self.flags),
            "structured_findings": {name: asdict(mention) for name, mention in self.structured_findings.items()},
            "domain_score": self.domain_score,
            "model": {"id": self.model_id, "revision": self.revision},
            "stats": asdict(self.stats)
            | {
                "tokens_per_forward": self.stats.tokens_per_forward,
                "tokens_per_second": self.stats.tokens_per_second,
            },
        }
