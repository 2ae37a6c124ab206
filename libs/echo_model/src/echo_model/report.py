"""What the engine hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
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

    `gated_blocks`: how many of the `blocks` the gate gave one step more; `redenoised_blocks`: how many were decoded
    anew for garble in them. `queue_seconds` is time spent waiting for a slot. The other times are those on the clock:
    passes are shared with the requests decoded together.
    """

    prompt_tokens: int
    tokens: int
    blocks: int
    forward_passes: int
    gated_blocks: int
    redenoised_blocks: int
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
    def gated_fraction(self) -> float:
        """Share of the blocks that the gate gave one step more."""
        return self.gated_blocks / self.blocks

    @property
    def tokens_per_second(self) -> float:
        """Tokens kept for each second of decoding."""
        return self.tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass
class EngineStats:
    """Totals of an engine. `passes` counts decoding passes, `rows` the requests that took part in them."""

    slots: int
    passes: int = 0
    rows: int = 0
    reports: int = 0
    tokens: int = 0
    blocks: int = 0
    gated_blocks: int = 0
    redenoised_blocks: int = 0
    report_passes: int = 0
    queue_seconds: float = 0.0
    ends: dict[str, int] = field(default_factory=dict)
    """How many requests ended otherwise: `cancelled`, or the name of the error."""

    @property
    def occupancy(self) -> float:
        """Share of the slots that was in use, on average over the decoding passes."""
        return self.rows / (self.passes * self.slots) if self.passes else 0.0

    @property
    def tokens_per_forward(self) -> float:
        """Tokens kept for each pass of a request."""
        return self.tokens / self.report_passes if self.report_passes else 0.0

    @property
    def gated_fraction(self) -> float:
        """Share of the blocks that the gate gave one step more."""
        return self.gated_blocks / self.blocks if self.blocks else 0.0

    def copy(self) -> EngineStats:
        """As it is now."""
        return replace(self, ends=dict(self.ends))

    def step(self, rows: int) -> None:
        """A pass with that many requests was made."""
        self.passes += 1
        self.rows += rows

    def finished(self, stats: Stats) -> None:
        """A report was finished."""
        self.reports += 1
        self.tokens += stats.tokens
        self.blocks += stats.blocks
        self.gated_blocks += stats.gated_blocks
        self.redenoised_blocks += stats.redenoised_blocks
        self.report_passes += stats.forward_passes
        self.queue_seconds += stats.queue_seconds

    def ended(self, error: BaseException | None) -> None:
        """A request ended without a report."""
        name = "cancelled" if error is None else type(error).__name__
        self.ends[name] = self.ends.get(name, 0) + 1


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

    `flags` holds section errors (`missing_impression`, ...), `truncated`, `out_of_domain`, `image_not_read`,
    `contradiction`, and every flag that a sentence carries. `domain_score` is the distance from the training images
    (above 1 is out of domain), None when the checkpoint brings no statistics. `structured_findings` maps finding names
    to what the text says about them.
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
                "gated_fraction": self.stats.gated_fraction,
            },
        }
