"""The decode loops that `echo-model bench` compares, each over the same weights and one prepared prompt.

Every loop decodes the same number of tokens; the prompt's own pass is not part of the decoding time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from echo_model.slots import Prompt, SlotDecoder
from echo_model.text_model import KeyValueCache, TextModel
from echo_model.unmasking import DecodingRules

_GRAPH_ROWS = 256  # a recorded pass looks at a multiple of this many rows of the cache


@dataclass(frozen=True)
class Timing:
    """One run: seconds it took, passes among them, the tokens decoded (all slots), and seconds for the prompt.

    `prompt_seconds` is 0 where the prompt was in the cache already.
    """

    seconds: float
    forward_passes: int
    token_ids: list[int]
    prompt_seconds: float = 0.0


def now(device: torch.device) -> float:
    """Wall clock in seconds, after all work queued on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class BlockDiffusion:
    """The library's own decoding (`SlotDecoder`), `count` slots with the same prompt.

    The slots and, on a CUDA device, the recorded passes live as long as this object, as they do in the engine.
    """

    def __init__(self, text: TextModel, prompt: Prompt, rules: DecodingRules, count: int = 1) -> None:
        self._text, self._prompt, self._rules, self._count = text, prompt, rules, count
        self._device = prompt.embeds.device
        self._decoder: SlotDecoder | None = None

    def decode(self) -> Timing:
        """Decode all slots; their prompts are run the first time only."""
        started = now(self._device)
        if self._decoder is None:
            self._fill(lambda: self._prompt)
        else:
            for slot in range(self._count):
                self._decoder.rewind(slot, 0, steps=1)
        ready = now(self._device)
        return self._timed(ready, ready - started)

    def end_to_end(self, prepare: Callable[[], Prompt]) -> Timing:
        """Whole studies: picture through the vision tower and prompt through the model one by one, decoding together.

        The seconds are those of all of it.
        """
        started = now(self._device)
        self._fill(prepare)
        return self._timed(started, now(self._device) - started)

    def _fill(self, prepare: Callable[[], Prompt]) -> None:
        size = self._rules.block_length
        if self._decoder is None:
            capacity = -(-(self._prompt.length + self._rules.gen_length) // size) * size
            self._decoder = SlotDecoder(
                self._text,
                slots=self._count,
                capacity=capacity,
                block_length=size,
                mask_token_id=self._rules.mask_token_id,
                fused=self._rules.fused,
            )
        else:
            for slot in range(self._count):
                self._decoder.release(slot)
        for slot in range(self._count):
            self._decoder.admit(slot, prepare(), self._rules)
            self._decoder.prefill(slot)

    def _timed(self, started: float, prompt_seconds: float) -> Timing:
        decoder = self._decoder
        assert decoder is not None
        tokens: list[int] = []
        passes = 0
        while decoder.decoding:
            for slot, block in decoder.step():
                tokens.extend(block.token_ids)
                passes += block.forward_passes if slot == 0 else 0
        return Timing(now(self._device) - started, passes, tokens, prompt_seconds)


class OwnAutoregressive:
    """Greedy left-to-right decoding on the layers and static cache of `BlockDiffusion`, one pass a token.

    On a CUDA device the pass is recorded in CUDA graphs, and the host looks at each token one pass late.
    """

    def __init__(self, text: TextModel, prompt: Prompt, tokens: int, mask_token_id: int) -> None:
        self._text, self._prompt, self._tokens, self._mask_token_id = text, prompt, tokens, mask_token_id
        self._device = prompt.embeds.device
        self._rows = -(-(prompt.length + tokens) // _GRAPH_ROWS) * _GRAPH_ROWS
        self._cache: KeyValueCache | None = None
        self._run: Callable[[int], None] = self._pass
        self._graphed = self._device.type == "cuda"
        if self._graphed:
            from echo_model.graphs import GraphedPass

            self._run = GraphedPass(self._pass)

    @torch.inference_mode()
    def decode(self) -> Timing:
        """Decode; the prompt is run the first time only."""
        length = self._prompt.length
        started = now(self._device)
        if self._cache is None:
            self._cache = KeyValueCache(self._text.config, 1, self._rows, self._prompt.embeds)
            self._read_prompt(self._cache)
        self._token.copy_(self._first)
        self._at.fill_(length)
        ready = now(self._device)
        decoded = self._decode_late() if self._graphed else [self._decode_one(n) for n in range(self._tokens)]
        return Timing(now(self._device) - ready, self._tokens, decoded, ready - started)

    def _decode_one(self, number: int) -> int:
        self._run(self._prompt.length + number + 1)
        return int(self._token)  # a real loop looks at every token for the end

    def _decode_late(self) -> list[int]:
        arrived = torch.empty(self._tokens, dtype=torch.long, pin_memory=True)
        before: Any = None
        for number in range(self._tokens):
            self._run(-(-(self._prompt.length + number + 1) // _GRAPH_ROWS) * _GRAPH_ROWS)
            arrived[number : number + 1].copy_(self._token, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types for it
            event.record()
            if before is not None:
                before.synchronize()
            before = event
        torch.cuda.synchronize(self._device)
        decoded: list[int] = arrived.tolist()
        return decoded

    def _read_prompt(self, cache: KeyValueCache) -> None:
        text, prompt, device, length = self._text, self._prompt, self._device, self._prompt.length
        self._keys = torch.arange(self._rows, device=device)
        after = self._keys[length:].expand(3, -1) + prompt.rope_delta
        self._cos, self._sin = text.rotary(torch.cat([prompt.positions[:, 0], after], dim=1))
        hidden_from = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
        bias = torch.zeros(length, length, dtype=prompt.embeds.dtype, device=device)
        bias.masked_fill_(hidden_from, torch.finfo(bias.dtype).min)
        rotary = (self._cos[None, :length], self._sin[None, :length])
        hidden = text.forward(
            prompt.embeds, rotary, bias[None, None], cache, self._keys[:length], slice(0, 1), slice(0, length)
        )
        self._first = self._best(hidden)
        self._token, self._at = self._first.clone(), torch.zeros(1, dtype=torch.long, device=device)

    def _pass(self, span: int) -> None:
        """One token, on tensors that stay where they are; sees `span` rows of the cache at most."""
        assert self._cache is not None
        rotary = (self._cos[self._at].unsqueeze(0), self._sin[self._at].unsqueeze(0))
        bias = torch.zeros(1, 1, 1, span, dtype=self._cos.dtype, device=self._device)
        bias.masked_fill_(self._keys[:span] > self._at, torch.finfo(bias.dtype).min)
        embeds = self._text.embed(self._token[None])
        hidden = self._text.forward(embeds, rotary, bias, self._cache, self._at, slice(0, 1), slice(0, span))
        self._token.copy_(self._best(hidden))
        self._at += 1

    def _best(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self._text.head(hidden[:, -1])
        logits[:, self._mask_token_id] = -torch.inf
        best: torch.Tensor = logits.argmax(dim=-1)
        return best


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
    return Timing(now(device) - ready, tokens, decoded, ready - started)


@torch.inference_mode()
def huggingface_generate(model: Any, inputs: dict[str, torch.Tensor], tokens: int) -> Timing:
    """`model.generate`, greedy, without an end token. What its first token costs is taken off as the prompt's time."""
    device, length = inputs["input_ids"].device, inputs["input_ids"].shape[1]
    seconds: list[float] = []
    ids: list[int] = []
    for count in (1, tokens + 1):
        started = now(device)
        answer = model.generate(
            **inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        seconds.append(now(device) - started)
        ids = answer[0, length:].tolist()
    return Timing(seconds[1] - seconds[0], tokens, ids[1:], seconds[0])


@torch.inference_mode()
def plain_loop(model: Any, prompt: Prompt, rules: DecodingRules) -> Timing:
    """One-step fused block diffusion as it is written straight over Hugging Face parts.

    `DynamicCache` that grows and is cut back, a mask tensor of the whole sequence built for every block, logits and
    softmax of every row, and a host check a block. Decodes the same tokens as `BlockDiffusion`. Raises ValueError when
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
    return Timing(finished - ready, passes, ids[0, : rules.gen_length].tolist(), ready - started)
