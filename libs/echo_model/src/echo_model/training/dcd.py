"""Direct Conditional Distillation (DCD, ECHO, arXiv 2604.09450): stage 3, several denoising steps into one.

The teacher, a model of stage 2, decodes on-policy. What it believed about each position at the step that fixed it,
stitched together over a block, is a joint target that one step from full masks can be taught: the later a position was
fixed, the more of its neighbours its distribution already knows. The student sees the RAD layout built with the
teacher's own tokens, every token of the answer masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache

from echo_model.training.rad import rad_mask
from echo_model.training.shape import Layout
from echo_model.training.text_stages import Loss, TextData, embed, hidden_states

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
    banned = torch.zeros(logits.shape[-1], dtype=torch.bool)
    banned[mask_token_id] = True
    return logits.float().masked_fill(banned, -torch.inf).log_softmax(dim=-1)


@torch.no_grad()
def roll_out(
    teacher: Any, layout: Layout, features: torch.Tensor, block: int, *, tau: float, top_k: int, max_tokens: int
) -> Trajectories:
    """Let the teacher decode B answers to visual tokens (B, V, H), a block at a time, all rows in step.

    A step fixes every masked position whose confidence is at least `tau`, or the single most confident one. Decoding
    ends when every row has ended, or after the blocks that hold `max_tokens`.
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
            confidence, best = log.max(dim=-1)
            confidence = confidence.masked_fill(~masked, -torch.inf)
            most = functional.one_hot(confidence.argmax(dim=-1), block).bool()
            sure = confidence.exp() >= tau
            chosen = masked & torch.where(sure.any(dim=1, keepdim=True), sure, most)
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


def usable(paths: Trajectories) -> torch.Tensor:
    """bool (B,): answers that came to an end and do not loop."""
    looping = [loops(ids[step > 0].tolist()) for ids, step in zip(paths.ids, paths.step, strict=True)]
    return paths.ended & ~torch.tensor(looping)


def divergence(top_ids: torch.Tensor, top_log: torch.Tensor, student_log: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) in nats, the teacher's k likeliest tokens and the rest as one: (N, k), (N, V) -> (N,)."""
    student_top = student_log.gather(-1, top_ids)
    kept = top_log.exp()
    inside = (kept * (top_log - student_top)).sum(dim=-1)
    left = (1 - kept.sum(dim=-1)).clamp_min(0.0)
    # the student's tail is summed over its other tokens: one minus the rest would lose a small one to rounding
    tail_log = student_log.scatter(-1, top_ids, -torch.inf).logsumexp(dim=-1)
    outside = torch.where(left > 1e-6, left * (left.clamp_min(1e-6).log() - tail_log), torch.zeros_like(left))
    return inside + outside


def student_states(model: Any, layout: Layout, features: torch.Tensor, paths: Trajectories, block: int) -> torch.Tensor:
    """The student's last hidden states (B, R, H) of one step from full masks, the teacher's tokens as clean blocks."""
    prefix, width = layout.length // block * block, paths.ids.shape[1]
    start = layout.prompt[:prefix].expand(paths.ids.shape[0], -1)
    noisy = paths.ids.masked_fill(paths.open, layout.mask)
    where = layout.positions[:, prefix : prefix + width]
    positions = torch.cat([layout.positions[:, :prefix], where, where], dim=1)
    embeds = embed(model, torch.cat([start, paths.ids, noisy], dim=1), layout, features)
    return hidden_states(model, embeds, positions, rad_mask(prefix, width, block, copies=1))[:, prefix + width :]


def dcd_loss(
    student: Any,
    teacher: Any,
    data: TextData,
    rows: Any,
    block: int,
    *,
    tau: float = 0.85,
    top_k: int = 64,
    eos_weight: float = 1.0,
) -> Loss:
    """Step-weighted KL to the teacher's stitched distributions, plus cross-entropy on the end tokens.

    The weights are proportional to the unmasking step, with mean 1. Answers that loop or never end are left out.
    """
    layout = data.layout
    features = data.features.rows(rows)
    longest = layout.positions.shape[1] - layout.length - block
    max_tokens = min(longest, int(data.lengths.max()) + 2 * block)
    vocabulary = student.config.text_config.vocab_size
    paths = roll_out(teacher, layout, features, block, tau=tau, top_k=min(top_k, vocabulary - 1), max_tokens=max_tokens)
    use = usable(paths)
    figures = {"used": float(use.float().mean())}
    if not bool(use.any()):
        return torch.zeros((), requires_grad=True), figures
    paths = paths.chosen(use)
    states = student_states(student, layout, features[use], paths, block)
    fixed, ends = paths.step > 0, paths.open & (paths.ids == layout.eos)
    log = log_probabilities(student.lm_head(states[fixed]), layout.mask)
    weights = paths.step[fixed].float()
    apart = divergence(paths.top_ids[fixed], paths.top_log[fixed], log)
    kl = (apart * weights).sum() / weights.sum()
    end_log = log_probabilities(student.lm_head(states[ends]), layout.mask)
    end = -end_log[:, layout.eos].mean()
    agree = (log.detach().argmax(dim=-1) == paths.ids[fixed]).float().mean()
    figures |= {"kl": float(kl.detach()), "eos": float(end.detach()), "agree": float(agree)}
    figures["teacher_steps"] = float(paths.step[fixed].float().mean())
    return kl + eos_weight * end, figures
