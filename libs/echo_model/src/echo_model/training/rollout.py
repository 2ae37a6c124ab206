"""A teacher's own decoding, block by block, and what it believed at the step that fixed each token.

Stitched together over a block, these beliefs are the joint target of distillation (stage 3, see ``dcd``). The canonical
rule makes the teacher agree with itself: among tokens that are nearly as likely as the best it always takes the one
with the lowest number, and counts the belief in all of them as belief in that one. Which of two equal wordings it
writes then no longer depends on chance details of the image, and a student of one step can follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache

from echo_model.training.rad import rad_mask
from echo_model.training.shape import Layout
from echo_model.training.text_stages import embed

_LOOP_GRAM, _LOOP_TIMES = 6, 3


@dataclass(frozen=True)
class Trajectories:
    """What a teacher decoded: B answers on the block grid, R positions each, prompt tail included.

    `ids` int64 (B, R): the teacher's tokens, the end token from the first one on. `step` int64 (B, R): the denoising
    step of its block that fixed a position, from 1; 0 at the prompt's tail and after the first end token. `top_ids` and
    `top_log` (B, R, k): its likeliest tokens there and their log-probabilities; what they leave over is the tail.
    `open` bool (B, R): the answer with its end tokens up to the end of its last block. `ended` bool (B,).
    """

    ids: torch.Tensor
    step: torch.Tensor
    top_ids: torch.Tensor
    top_log: torch.Tensor
    open: torch.Tensor
    ended: torch.Tensor

    def chosen(self, rows: torch.Tensor) -> Trajectories:
        """Only these rows (bool (B,))."""
        return Trajectories(*(value[rows] for value in vars(self).values()))


def log_probabilities(logits: torch.Tensor, mask_token_id: int) -> torch.Tensor:
    """Log-softmax over all tokens but the mask token, which decoding never chooses."""
    banned = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    banned[mask_token_id] = True
    return logits.float().masked_fill(banned, -torch.inf).log_softmax(dim=-1)


def canonical_log(log: torch.Tensor, share: float) -> torch.Tensor:
    """Move the belief in every token with p >= ``share`` * p_max to the one of them with the lowest number.

    Log-probabilities (..., V) in and out; the sum stays one.
    """
    near = log >= log.amax(dim=-1, keepdim=True) + torch.tensor(share).log()
    first = near.long().argmax(dim=-1, keepdim=True)
    together = log.masked_fill(~near, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return log.masked_fill(near, -torch.inf).scatter(-1, first, together)


def denoise(
    log: torch.Tensor, masked: torch.Tensor, tau: float, canonical: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step of a teacher: log-probabilities (B, block, V) and masked positions (B, block) to what becomes fixed.

    Returns the positions (bool (B, block)), the token of every position, and the beliefs, canonical if asked. Fixed is
    what is at least `tau` sure, or the surest position alone. The canonical rule moves belief, never confidence.
    """
    confidence, best = log.max(dim=-1)
    if canonical is not None:
        log = canonical_log(log, canonical)
        best = log.argmax(dim=-1)
    confidence = confidence.masked_fill(~masked, -torch.inf)
    most = functional.one_hot(confidence.argmax(dim=-1), masked.shape[1]).bool()
    sure = confidence.exp() >= tau
    return masked & torch.where(sure.any(dim=1, keepdim=True), sure, most), best, log


@torch.no_grad()
def roll_out(
    teacher: Any,
    layout: Layout,
    features: torch.Tensor,
    block: int,
    *,
    tau: float,
    top_k: int,
    max_tokens: int,
    canonical: float | None = None,
) -> Trajectories:
    """Let the teacher decode B answers to visual tokens (B, V, H), a block at a time, all rows in step.

    A step fixes every masked position whose confidence is at least `tau`, or the single most confident one. Decoding
    ends when every row has ended, or after the blocks that hold `max_tokens`. `canonical`: share of the best token's
    probability from which the canonical rule counts another as equal; None leaves the rule out. The confidence stays
    that of the single best token, so that a near-tie is settled before what depends on it.
    """
    rows, prefix = features.shape[0], layout.length // block * block
    tail = layout.prompt[prefix:].expand(rows, -1)
    prompt = embed(teacher, layout.prompt.expand(rows, -1), layout, features)
    cache = DynamicCache(config=teacher.config.text_config)

    def forward(embeds: torch.Tensor, first: int, visible: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = teacher.model.language_model(
            inputs_embeds=embeds,
            position_ids=layout.positions[:, None, first : first + embeds.shape[1]].expand(-1, rows, -1),
            attention_mask={"full_attention": visible[None, None]},
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return states

    if prefix:
        forward(prompt[:, :prefix], 0, rad_mask(prefix, 0, block, copies=0))
    words = teacher.model.language_model.embed_tokens
    parts: list[tuple[torch.Tensor, ...]] = []
    ended = torch.zeros(rows, dtype=torch.bool)
    first = prefix
    while not bool(ended.all()) and first + block <= prefix + -(-(tail.shape[1] + max_tokens) // block) * block:
        fixed = tail.shape[1] if first == prefix else 0
        ids = torch.full((rows, block), layout.mask)
        ids[:, :fixed] = tail[:, :fixed]
        step = torch.zeros(rows, block, dtype=torch.long)
        top_ids = torch.zeros(rows, block, top_k, dtype=torch.long)
        top_log = torch.zeros(rows, block, top_k)
        visible = torch.ones(block, first + block, dtype=torch.bool)
        masked = torch.zeros(rows, block, dtype=torch.bool)
        masked[:, fixed:] = True
        number = 0

        def rows_of(tokens: torch.Tensor, fixed: int = fixed) -> torch.Tensor:
            # the prompt's tail may hold places of the image, so its embeddings are taken from the prompt
            return torch.cat([prompt[:, prefix : prefix + fixed], words(tokens[:, fixed:])], dim=1)

        while bool(masked.any()):
            number += 1
            log = log_probabilities(teacher.lm_head(forward(rows_of(ids), first, visible)), layout.mask)
            cache.crop(-block)
            chosen, best, log = denoise(log, masked, tau, canonical)
            likeliest = log.topk(top_k, dim=-1)
            ids[chosen], step[chosen] = best[chosen], number
            top_ids[chosen], top_log[chosen] = likeliest.indices[chosen], likeliest.values[chosen]
            masked &= ~chosen
        forward(rows_of(ids), first, visible)
        answers = torch.arange(block) >= fixed
        end = (ids == layout.eos) & answers
        after = (end.long().cumsum(dim=1) - end.long()) > 0  # behind the first end token of this block
        gone = ended[:, None]
        open_ = answers & ~gone
        parts.append(
            (ids.masked_fill(after | gone, layout.eos), step.masked_fill(after | gone, 0), top_ids, top_log, open_)
        )
        ended = ended | end.any(dim=1)
        first += block
    ids, step, top_ids, top_log, open_ = (torch.cat(group, dim=1) for group in zip(*parts, strict=True))
    return Trajectories(ids, step, top_ids, top_log, open_, ended)


def loops(tokens: list[int]) -> bool:
    """Whether some stretch of six tokens comes three times: a teacher that runs in circles teaches nothing."""
    counts: dict[tuple[int, ...], int] = {}
    for at in range(len(tokens) - _LOOP_GRAM + 1):
        gram = tuple(tokens[at : at + _LOOP_GRAM])
        counts[gram] = counts.get(gram, 0) + 1
        if counts[gram] >= _LOOP_TIMES:
            return True
    return False


def looping(paths: Trajectories) -> torch.Tensor:
    """bool (B,): answers that run in circles."""
    return torch.tensor([loops(ids[step > 0].tolist()) for ids, step in zip(paths.ids, paths.step, strict=True)])


def usable(paths: Trajectories) -> torch.Tensor:
    """bool (B,): answers that came to an end and do not loop."""
    return paths.ended & ~looping(paths)
