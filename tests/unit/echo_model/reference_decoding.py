"""The decoding rules without any cache or window: each step runs prompt and answer whole, under one explicit mask."""

from __future__ import annotations

from typing import Any

import torch

from echo_model.decoding import Generation
from echo_model.unmasking import LOOK_BACK, DecodingRules, RowRules, select


@torch.inference_mode()
def reference_generate(
    model: Any, ids: torch.Tensor, pixels: torch.Tensor | None, grid: torch.Tensor | None, rules: DecodingRules
) -> Generation:
    """Decode one answer with the stock model's own `forward`."""
    size, prompt = rules.block_length, ids.shape[1]
    total = -(-(prompt + rules.gen_length) // size) * size
    sequence = torch.full((1, total), rules.mask_token_id)
    sequence[:, :prompt] = ids
    at_image = sequence == model.config.image_token_id
    features = None if pixels is None else model.model.visual(pixels, grid_thw=grid).pooler_output
    positions, _ = model.model.get_rope_index(sequence, mm_token_type_ids=at_image.int(), image_grid_thw=grid)
    block = torch.arange(total) // size
    visible = (block[None, :] <= block[:, None])[None, None]
    confidences: dict[int, float] = {}
    steps_of: list[int] = []
    gated = 0
    row_rules = RowRules.of([rules])
    end_tokens = torch.tensor(rules.eos_token_ids)
    for start in range(prompt // size * size, total, size):
        masked = torch.arange(start, start + size) >= prompt
        steps = 0
        while masked.any():
            embeds = model.get_input_embeddings()(sequence)
            if features is not None:  # only the prompt's image tokens are pictures, never a chosen one
                embeds = embeds.masked_scatter(at_image.unsqueeze(-1), features)
            logits = model(
                inputs_embeds=embeds,
                position_ids=positions,
                attention_mask={"full_attention": visible},
            ).logits[0, start : start + size]
            probabilities = logits.softmax(dim=-1)
            entropy = -(probabilities * probabilities.log()).sum(dim=-1)
            probabilities[:, rules.mask_token_id] = 0.0
            confidence, best = probabilities.max(dim=-1)
            tokens = torch.where(masked, best, sequence[0, start : start + size])
            ends = torch.isin(tokens, end_tokens) & (torch.arange(start, start + size) >= prompt)
            earlier = [int(sequence[0, at]) if at >= prompt else -1 for at in range(start - LOOK_BACK, start)]
            own = [int(token) if start + at >= prompt else -1 for at, token in enumerate(tokens)]
            said, step = torch.tensor([earlier + own]), torch.tensor([steps])
            chosen = select(masked[None], ends[None], confidence[None], entropy[None], row_rules, step, said=said)[0]
            for at in chosen.nonzero().flatten().tolist():
                sequence[0, start + at] = best[at]
                confidences[start + at] = float(confidence[at])
            masked &= ~chosen
            steps += 1
        steps_of.append(steps)
        gated += steps > rules.denoising_steps
        if any(token in rules.eos_token_ids for token in sequence[0, max(start, prompt) : start + size].tolist()):
            break
    answer = sequence[0, prompt : start + size].tolist()
    end = next((at for at, token in enumerate(answer) if token in rules.eos_token_ids), None)
    kept = answer[: min(rules.gen_length, len(answer) if end is None else end)]
    values = [confidences[prompt + at] for at in range(len(kept))]
    return Generation(kept, values, sum(steps_of), steps_of, gated, end is not None and end <= rules.gen_length)
