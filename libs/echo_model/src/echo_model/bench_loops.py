"""The decode loops that `echo-model bench` compares, each over the same stock modules and one prepared prompt.

Every loop decodes at least `tokens` tokens after the prompt has been run; the prompt's own pass is timed apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from echo_model.slots import Prompt, SlotDecoder
from echo_model.text_model import KeyValueCache, TextModel
from echo_model.unmasking import DecodingRules


@dataclass(frozen=True)
class Timing:
    """One run of a loop: seconds for the prompt and for decoding, decoding passes, and what was decoded."""

    prefill_seconds: float
    decode_seconds: float
    forward_passes: int
    token_ids: list[int]


def now(device: torch.device) -> float:
    """Wall clock in seconds, after all work queued on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def block_diffusion(text: TextModel, prompts: Sequence[Prompt], rules: DecodingRules) -> Timing:
    """The library's own decoding (`SlotDecoder`) of one or several prompts together, fused or not as the rules say."""
    device = prompts[0].embeds.device
    size = rules.block_length
    capacity = max(-(-(prompt.length + rules.gen_length) // size) * size for prompt in prompts)
    decoder = SlotDecoder(
        text,
        slots=len(prompts),
        capacity=capacity,
        block_length=size,
        mask_token_id=rules.mask_token_id,
        fused=rules.fused,
    )
    started = now(device)
    for slot, prompt in enumerate(prompts):
        decoder.admit(slot, prompt, rules)
        decoder.prefill(slot)
    ready = now(device)
    tokens: list[int] = []
    passes = 0
    while decoder.decoding:
        for slot, block in decoder.step():
            tokens.extend(block.token_ids)
            passes += block.forward_passes if slot == 0 else 0
    return Timing(ready - started, now(device) - ready, passes, tokens)


@torch.inference_mode()
def own_autoregressive(text: TextModel, prompt: Prompt, tokens: int, mask_token_id: int) -> Timing:
    """Greedy left-to-right decoding on the same layers and static cache as `block_diffusion`: one pass a token."""
    device, length = prompt.embeds.device, prompt.length
    cache = KeyValueCache(text.config, 1, length + tokens, prompt.embeds)
    rows = torch.arange(length + tokens, device=device)
    positions = torch.cat([prompt.positions[:, 0], rows[length:].expand(3, -1) + prompt.rope_delta], dim=1)
    cos, sin = (part.unsqueeze(0) for part in text.rotary(positions))
    bias = torch.zeros(1, 1, length, length, dtype=prompt.embeds.dtype, device=device)
    bias.masked_fill_(torch.ones(length, length, dtype=torch.bool, device=device).triu(1), torch.finfo(bias.dtype).min)

    def step(embeds: torch.Tensor, begin: int, end: int, mask: torch.Tensor) -> torch.Tensor:
        here = slice(begin, end)
        rotary = (cos[:, here], sin[:, here])
        hidden = text.forward(embeds, rotary, mask, cache, rows[here], slice(0, 1), slice(0, end))
        logits = text.head(hidden[:, -1])
        logits[:, mask_token_id] = -torch.inf
        best: torch.Tensor = logits.argmax(dim=-1)
        return best

    started = now(device)
    token = step(prompt.embeds, 0, length, bias)
    ready = now(device)
    decoded: list[int] = []
    nothing = torch.zeros(1, 1, 1, length + tokens, dtype=bias.dtype, device=device)
    for at in range(length, length + tokens):
        token = step(text.embed(token[None]), at, at + 1, nothing[..., : at + 1])
        decoded.append(int(token))  # a real loop looks at every token for the end
    return Timing(ready - started, now(device) - ready, tokens, decoded)


@torch.inference_mode()
def autoregressive(model: Any, prompt: Prompt, tokens: int, mask_token_id: int) -> Timing:
    """Greedy left-to-right decoding written over Hugging Face parts: `DynamicCache`, one pass and host check a token.

    The first token comes out of the prompt's pass; `tokens` further ones are decoded and counted.
    """
    language, device, length = model.model.language_model, prompt.embeds.device, prompt.length
    cache = DynamicCache(config=model.config.text_config)

    def step(embeds: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        hidden = language(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask={"full_attention": mask},
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits = model.lm_head(hidden[0, -1:])
        logits[:, mask_token_id] = -torch.inf
        best: torch.Tensor = logits.argmax(dim=-1)
        return best

    started = now(device)
    hidden_from = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    causal = torch.zeros(length, length, dtype=prompt.embeds.dtype, device=device)
    causal.masked_fill_(hidden_from, torch.finfo(causal.dtype).min)
    token = step(prompt.embeds, prompt.positions, causal[None, None])
    ready = now(device)
    decoded: list[int] = []
    for at in range(length, length + tokens):
        where = torch.full((3, 1, 1), at + prompt.rope_delta, device=device)
        token = step(language.embed_tokens(token)[None], where, None)
        decoded.append(int(token))  # a real loop looks at every token for the end
    return Timing(ready - started, now(device) - ready, tokens, decoded)


@torch.inference_mode()
def plain_loop(model: Any, prompt: Prompt, rules: DecodingRules) -> Timing:
    """One-step fused block diffusion as it is written straight over Hugging Face parts.

    `DynamicCache` that grows and is cut back, a mask tensor of the whole sequence built for every block, logits and
    softmax of every row, and a host check a block. Decodes the same tokens as `block_diffusion`. Raises ValueError when
    the prompt is not on the block grid.
    """
    language, device, size = model.model.language_model, prompt.embeds.device, rules.block_length
    length = prompt.length
    if length % size:
        raise ValueError(f"a prompt of {length} tokens is no multiple of the block length {size}")
    cache = DynamicCache(config=model.config.text_config)

    def forward(embeds: torch.Tensor, positions: torch.Tensor, total: int) -> torch.Tensor:
        at = torch.arange(total, device=device) // size
        bias = torch.zeros(total, total, dtype=embeds.dtype, device=device)
        bias.masked_fill_(at[None, :] > at[:, None], torch.finfo(embeds.dtype).min)
        output = language(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask={"full_attention": bias[None, None, total - embeds.shape[1] :]},
            past_key_values=cache,
            use_cache=True,
        )
        states: torch.Tensor = output.last_hidden_state
        return states

    started = now(device)
    forward(prompt.embeds, prompt.positions, length)
    ready = now(device)
    masks = torch.full((1, size), rules.mask_token_id, device=device)
    ids = torch.empty((1, 0), dtype=torch.long, device=device)
    passes = 0
    while ids.shape[1] < rules.gen_length:
        window = torch.cat([ids[:, -size:], masks], dim=1)
        total = length + ids.shape[1] + size
        positions = torch.arange(total - window.shape[1], total, device=device).expand(3, 1, -1) + prompt.rope_delta
        states = forward(language.embed_tokens(window), positions, total)
        cache.crop(-size)
        probabilities = model.lm_head(states).float().softmax(dim=-1)[:, -size:]
        probabilities[..., rules.mask_token_id] = -1.0
        block = probabilities.argmax(dim=-1)
        ids = torch.cat([ids, block], dim=1)
        passes += 1
        if any(token in rules.eos_token_ids for token in block[0].tolist()):
            break
    finished = now(device)
    return Timing(ready - started, finished - ready, passes, ids[0, : rules.gen_length].tolist())


Loop = Callable[[], Timing]
