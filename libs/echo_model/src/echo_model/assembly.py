"""From decoded tokens to a report: text, sections, sentences with confidence and flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from echo_model import guards
from echo_model.domain_score import DomainModel, describe_image
from echo_model.guard_settings import GuardSettings
from echo_model.model import LoadedModel
from echo_model.prompt import SectionName, Sections, Span, parse_sections, sentence_spans
from echo_model.report import Report, Sentence, Stats
from echo_model.slots import Block, Prompt

LOW_CONFIDENCE_BELOW = 0.6


@dataclass(frozen=True)
class Draft:
    """A decoded answer and what is known of it."""

    blocks: tuple[Block, ...]
    domain_score: float | None
    stats: Stats
    guards: GuardSettings
    image_left_out: bool = False


def assemble(loaded: LoadedModel, lexicon: guards.Lexicon | None, draft: Draft) -> Report:
    """Text, sections, flags and figures from the decoded blocks."""
    from echo_model.data.findings import extract_findings

    blocks, score = draft.blocks, draft.domain_score
    ids = [token for block in blocks for token in block.token_ids]
    confidences = [value for block in blocks for value in block.confidences]
    text: str = loaded.tokenizer.decode(ids)
    sections = parse_sections(text)
    words = lexicon if draft.guards.lexicon else None
    found = guards.defects(text, words, garble=draft.guards.garble)
    sentences = _sentences(loaded, text, sections, ids, confidences, found)
    flags = list(sections.errors)
    if not blocks[-1].ended:
        flags.append(guards.TRUNCATED)
    if score is not None and score > 1.0:
        flags.append(guards.OUT_OF_DOMAIN)
    if draft.image_left_out:
        flags.append(guards.IMAGE_NOT_READ)
    if draft.guards.contradiction and guards.contradictions(sections.findings, sections.impression):
        flags.append(guards.CONTRADICTION)
    flags += [flag for sentence in sentences for flag in sentence.flags]
    return Report(
        text=text.strip(),
        findings=sections.findings,
        impression=sections.impression,
        sentences=sentences,
        token_ids=tuple(ids),
        confidences=tuple(confidences),
        flags=tuple(dict.fromkeys(flags)),
        structured_findings=extract_findings(f"{sections.findings} {sections.impression}".strip()),
        domain_score=score,
        model_id=loaded.model_id,
        revision=loaded.revision,
        stats=draft.stats,
    )


def domain_score(
    domain: DomainModel | None, loaded: LoadedModel, prompt: Prompt, pixels: torch.Tensor, grids: torch.Tensor
) -> float | None:
    """Score of the image that is farthest from the training images."""
    if domain is None or prompt.image_features is None:
        return None
    cfg = loaded.image_config
    sizes: list[int] = grids.prod(dim=-1).tolist()
    towers = torch.split_with_sizes(prompt.image_features, [size // cfg.merge_size**2 for size in sizes])
    return max(
        domain.score(describe_image(tower, values, cfg))
        for tower, values in zip(towers, torch.split_with_sizes(pixels, sizes), strict=True)
    )


def _sentences(
    loaded: LoadedModel,
    text: str,
    sections: Sections,
    ids: list[int],
    confidences: list[float],
    defects: Sequence[guards.Defect],
) -> tuple[Sentence, ...]:
    """The sentences of both sections with their confidence and flags."""
    spans = guards.token_spans(loaded.tokenizer, ids)
    sentences: list[Sentence] = []
    sides: tuple[tuple[SectionName, Span], ...] = (
        ("findings", sections.findings_span),
        ("impression", sections.impression_span),
    )
    for name, within in sides:
        for span in sentence_spans(text, *within):
            words = text[slice(*span)]
            mean, lowest = guards.confidence_of(span, spans, confidences)
            flags = list(guards.flags_within(defects, span))
            if mean < LOW_CONFIDENCE_BELOW:
                flags.append(guards.LOW_CONFIDENCE)
            sentences.append(Sentence(words, name, mean, lowest, tuple(flags)))
    return tuple(sentences)
