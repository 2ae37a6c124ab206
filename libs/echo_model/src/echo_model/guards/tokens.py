"""Tokens and their confidences laid over the text they spell."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from echo_model.prompt import Span


def token_spans(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[Span]:
    """Character span of every token in the decoded text; special tokens have empty spans."""
    ends = [len(tokenizer.decode(list(token_ids[: count + 1]))) for count in range(len(token_ids))]
    # A character whose bytes are spread over tokens decodes to a replacement until it is whole: keep spans in order.
    for at in range(1, len(ends)):
        ends[at] = max(ends[at], ends[at - 1])
    return list(zip([0, *ends[:-1]], ends, strict=True))


def confidence_of(span: Span, spans: Sequence[Span], confidences: Sequence[float]) -> tuple[float, float]:
    """Mean and lowest confidence of the tokens that overlap a stretch of text; (0, 0) when none does."""
    inside = [
        value for (start, end), value in zip(spans, confidences, strict=True) if start < span[1] and end > span[0]
    ]
    if not inside:
        return 0.0, 0.0
    return sum(inside) / len(inside), min(inside)
