"""What generating cost and how often it went wrong, from the reports themselves."""

from __future__ import annotations

from collections.abc import Sequence

from echo_model.guards import GARBLED, OUT_OF_DOMAIN
from echo_model.report import Report


def generation_figures(reports: Sequence[Report], block_length: int) -> dict[str, float]:
    """Figures over at least one report.

    ``garbled_rate``: share of sentences with a flag of garbled text; ``out_of_domain_rate``: share of reports flagged
    so; ``tokens_per_forward``: kept tokens for each decoding pass, without the prompt's pass;
    ``tokens_per_forward_with_padding``: the same with what a last block holds after the end of the text;
    ``tokens_per_second``: of decoding, added up over reports (those decoded together share their passes);
    ``gated_fraction``: share of blocks that the gate gave a second step; ``redenoised_fraction``: share of blocks that
    were decoded anew for garble in them.
    """
    sentences = [sentence for report in reports for sentence in report.sentences]
    tokens = sum(report.stats.tokens for report in reports)
    passes = sum(report.stats.forward_passes for report in reports)
    blocks = sum(report.stats.blocks for report in reports)
    seconds = sum(report.stats.decode_seconds for report in reports)
    return {
        "garbled_rate": sum(not GARBLED.isdisjoint(sentence.flags) for sentence in sentences) / max(1, len(sentences)),
        "out_of_domain_rate": sum(OUT_OF_DOMAIN in report.flags for report in reports) / len(reports),
        "tokens_per_forward": tokens / passes,
        "tokens_per_forward_with_padding": blocks * block_length / passes,
        "gated_fraction": sum(report.stats.gated_blocks for report in reports) / blocks,
        "redenoised_fraction": sum(report.stats.redenoised_blocks for report in reports) / blocks,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
    }
