"""What generating cost and how often it went wrong, from the reports themselves."""

from __future__ import annotations

from collections.abc import Sequence

from echo_model.guards import GARBLED, OUT_OF_DOMAIN
from echo_model.report import Report


def generation_figures(reports: Sequence[Report]) -> dict[str, float]:
    """Figures over at least one report.

    ``garbled_rate``: share of sentences with a flag of garbled text; ``out_of_domain_rate``: share of reports flagged
    so; ``tokens_per_forward``: without the prompt's pass; ``tokens_per_second``: of decoding; ``gated_fraction``: share
    of blocks to which a gate gave a second step. The decoder has no such gate, so that none gets one: it is 0.
    """
    sentences = [sentence for report in reports for sentence in report.sentences]
    tokens = sum(report.stats.tokens for report in reports)
    return {
        "garbled_rate": sum(not GARBLED.isdisjoint(sentence.flags) for sentence in sentences) / max(1, len(sentences)),
        "out_of_domain_rate": sum(OUT_OF_DOMAIN in report.flags for report in reports) / len(reports),
        "tokens_per_forward": tokens / sum(report.stats.forward_passes for report in reports),
        "gated_fraction": 0.0,
        "tokens_per_second": tokens / sum(report.stats.decode_seconds for report in reports),
    }
