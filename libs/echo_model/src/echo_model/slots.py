"""Block diffusion decoding of many answers at once, each in a slot of its own: the exact rules.

To be read beside docs/engine.md. The sequence (prompt and answer) is cut into blocks of B tokens counted from position
0; a token sees its own block and every earlier one. Every decoding pass looks at a window of 2B rows in each slot:

    [ the finished block before, clean | the current block, partly masked ]

The clean rows see the cache and themselves, the current rows see all of it. The pass writes the keys and values of
both; those of the clean block are final from then on, those of the current block are overwritten when the window has
moved on by B and the block is clean. So finishing a block costs no pass of its own and moves nothing, a block may stay
for another denoising step while its neighbours go on, and a block may be decoded anew by moving the window back.
Method: ECHO (arXiv 2604.09450).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from echo_model.errors import SettingsError
from echo_model.text_model import KeyValueCache, TextModel
from echo_model.unmasking import LOOK_BACK, STRATEGIES, DecodingRules, RemaskingStrategy, RowRules, read_logits, select

_NOTHING = DecodingRules(mask_token_id=0, eos_token_ids=(1,), block_length=1, gen_length=1)
_FLAGS = 3  # finished a block, still decoding, passes so far


@dataclass(frozen=True)
class Prompt:
    """A prompt with its pictures resolved.

    `embeds` (1, L, hidden), `positions` (3, 1, L), the answer's rotary offset, and the vision tower's output
    `image_features` (image tokens of all pictures, hidden) or None.
    """

    embeds: torch.Tensor
    positions: torch.Tensor
    rope_delta: int
    image_features: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """Number of prompt tokens, picture tokens included."""
        return self.embeds.shape[1]


@dataclass(frozen=True)
class Block:
    """One decoded block: its new tokens (without the end token and what follows) and how they came about.

    `gated`: the gate asked for a step beyond the permitted ones. `last`: the answer ends here, by an end token
    (`ended`) or because its longest length is reached.
    """

    index: int
    token_ids: tuple[int, ...]
    confidences: tuple[float, ...]
    steps: int
    forward_passes: int
    gated: bool
    ended: bool
    last: bool


@dataclass
class _Row:
    """What the host knows of a slot."""

    prompt: Prompt
    rules: DecodingRules
    first: int
    to_prefill: int
    prefilled: int = 0
    decoding: bool = False
    start: int = 0
    step: int = 0
    passes: int = 0
    lengths: tuple[int, ...] = ()
    careful: DecodingRules | None = None
    careful_until: int = 0
    valid_from: int = 0

    @property
    def anew(self) -> bool:
        """Whether the slot stands in a stretch that is decoded anew."""
        return self.start < self.careful_until

    @property
    def current(self) -> DecodingRules:
        """The rules in force: the request's own, or those of a stretch that is decoded anew."""
        return self.careful if self.careful is not None and self.anew else self.rules


@dataclass(frozen=True)
class _Plan:
    """What one pass has to know beforehand: number of slots, rows of the cache, window, and which rules occur."""

    slots: int
    span: int
    wide: bool
    strategies: tuple[RemaskingStrategy, ...]
    gated: bool
    anew: bool
    opening: bool


class _Answer:
    """What a pass has found, on its way to the host."""

    def __init__(self, serial: int, flags: torch.Tensor, confidences: torch.Tensor) -> None:
        self._serial = serial
        self._event: Any = None
        if not flags.is_cuda:
            self._parts = [flags.clone(), confidences.clone()]
        else:
            self._parts = [torch.empty_like(part, device="cpu", pin_memory=True) for part in (flags, confidences)]
            for there, part in zip(self._parts, (flags, confidences), strict=True):
                there.copy_(part, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types for it
            self._event.record()

    def read(self) -> tuple[int, list[list[int]], list[list[float]]]:
        """Wait for it to arrive: the pass's number, flags and tokens, confidences."""
        if self._event is not None:
            self._event.synchronize()
        flags, confidences = self._parts
        return self._serial, flags.tolist(), confidences.tolist()


class SlotDecoder:
    """`slots` answers in the making on one static cache.

    Life of a slot: `admit`, `prefill` until it says True, then every `step` advances it, `release` when its last block
    has come. All state is on the device; `step` returns what has been finished. Nothing here is thread-safe.

    `capacity` is the largest prompt + answer in tokens. Without `fused`, a finished block gets a pass of its own. When
    `lagging` (by default on a CUDA device), `step` tells what the step before has finished, so that the host never
    waits for the step under way.
    """

    def __init__(
        self,
        text: TextModel,
        *,
        slots: int,
        capacity: int,
        block_length: int,
        mask_token_id: int,
        fused: bool = True,
        lagging: bool | None = None,
    ) -> None:
        weight = text.language_model.embed_tokens.weight
        device, size = weight.device, block_length
        self.text, self.slots, self.block_length = text, slots, size
        self.mask_token_id, self.fused = mask_token_id, fused
        self.pad = 2 * size  # rows without meaning in front: room for slots that have nothing to do
        self.rows = storage_rows(capacity, size)
        self.cache = KeyValueCache(text.config, slots, self.rows, weight)
        width = text.config.hidden_size // text.config.num_attention_heads

        def whole(value: int, *shape: int) -> torch.Tensor:
            return torch.full((slots, *shape), value, dtype=torch.long, device=device)

        kind = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self._tokens = whole(mask_token_id, self.rows)
        self._confidences = torch.zeros(slots, self.rows, dtype=kind, device=device)
        self._cos = torch.zeros(slots, self.rows, width, dtype=weight.dtype, device=device)
        self._sin = torch.zeros_like(self._cos)
        self._opening = torch.zeros(slots, 2 * size, weight.shape[1], dtype=weight.dtype, device=device)
        self._start, self._first = whole(self.pad), whole(self.pad)
        self._prompt_end, self._end = whole(self.pad), whole(self.pad)
        self._step, self._passes, self._careful_until = whole(0), whole(0), whole(0)
        self._active = torch.zeros(slots, dtype=torch.bool, device=device)
        self._ends = whole(-1, 8)
        self._rules, self._careful = (RowRules.of([_NOTHING] * slots).to(device) for _ in range(2))
        self._window = torch.arange(2 * size, device=device)
        self._behind = torch.arange(LOOK_BACK, 0, -1, device=device)
        self._keys = torch.arange(self.rows, device=device)
        self._numbers = torch.arange(slots, device=device).unsqueeze(1)
        self._out = torch.zeros(slots, _FLAGS + size, dtype=torch.long, device=device)
        self._out_confidences = torch.zeros(slots, size, dtype=kind, device=device)
        self._rows: dict[int, _Row] = {}
        self._run: Callable[[_Plan], None] = self._pass
        self._serial = 0
        self._outstanding: _Answer | None = None
        self._lags = device.type == "cuda" if lagging is None else lagging
        if device.type == "cuda":
            from echo_model.graphs import GraphedPass

            self._run = GraphedPass(self._pass)

    # -- joining and leaving ------------------------------------------------------------------------------------------

    @property
    def decoding(self) -> bool:
        """Whether a step has anything to do."""
        return any(row.decoding for row in self._rows.values())

    @torch.inference_mode()
    def admit(self, slot: int, prompt: Prompt, rules: DecodingRules) -> None:
        """Give a free slot to a request. Raises SettingsError when it does not fit."""
        size = self.block_length
        if rules.block_length != size:
            raise SettingsError(f"block_length {rules.block_length} asked for, the slots are made for {size}")
        if len(rules.eos_token_ids) > self._ends.shape[1]:
            raise SettingsError(f"at most {self._ends.shape[1]} end tokens are supported")
        aligned = prompt.length // size * size
        blocks = math.ceil((prompt.length + rules.gen_length - aligned) / size)
        total = aligned + blocks * size
        if self.pad + total > self.rows:
            raise SettingsError(
                f"a prompt of {prompt.length} tokens and an answer of up to {rules.gen_length} do not fit into "
                f"{self.rows - self.pad} rows"
            )
        # The last whole block of the prompt enters the cache as the clean half of the first window.
        to_prefill = max(0, aligned - size) if self.fused else aligned
        first = self.pad + aligned
        self._rows[slot] = _Row(prompt, rules, first, to_prefill, start=first)
        positions = torch.arange(total, device=self._keys.device).expand(3, -1) + prompt.rope_delta
        positions = torch.cat([prompt.positions[:, 0], positions[:, prompt.length :]], dim=1)
        self._cos[slot, self.pad : self.pad + total], self._sin[slot, self.pad : self.pad + total] = self.text.rotary(
            positions
        )
        opening = prompt.embeds[0, max(0, aligned - size) :]
        begin = size - min(aligned, size)
        self._opening[slot, begin : begin + opening.shape[0]] = opening
        self._tokens[slot] = self.mask_token_id
        self._start[slot] = self._first[slot] = first
        self._prompt_end[slot] = self.pad + prompt.length
        self._end[slot] = self.pad + total
        self._step[slot] = self._passes[slot] = self._careful_until[slot] = 0
        self._ends[slot] = -1
        ends = torch.tensor(rules.eos_token_ids, device=self._ends.device)
        self._ends[slot, : len(ends)] = ends
        self._rules.put(slot, rules)

    @torch.inference_mode()
    def prefill(self, slot: int, rows: int | None = None) -> bool:
        """Run up to `rows` more tokens of the prompt (all by default). True when the slot is ready to be decoded."""
        row = self._rows[slot]
        size = self.block_length
        if row.prefilled < row.to_prefill:
            wanted = row.to_prefill if rows is None else max(size, rows // size * size)
            begin, end = row.prefilled, min(row.to_prefill, row.prefilled + wanted)
            block = (self._keys[:end] // size).unsqueeze(0)
            bias = self._bias(block <= block[:, begin:].T)
            here = slice(self.pad + begin, self.pad + end)
            self.text.forward(
                row.prompt.embeds[:, begin:end],
                (self._cos[slot : slot + 1, here], self._sin[slot : slot + 1, here]),
                bias[None, None],
                self.cache,
                slot * self.rows + self._keys[here],
                slice(slot, slot + 1),
                slice(self.pad, self.pad + end),
            )
            row.prefilled = end
        if row.prefilled < row.to_prefill:
            return False
        row.decoding = True
        row.valid_from = self._serial + 1
        self._active[slot] = True
        return True

    @torch.inference_mode()
    def release(self, slot: int) -> None:
        """Free a slot, whatever its state."""
        self._rows.pop(slot)
        self._active[slot] = False

    @torch.inference_mode()
    def rewind(self, slot: int, index: int, steps: int) -> None:
        """Decode a slot anew from its block `index` on, with `steps` steps a block until it is where it was."""
        row, size = self._rows[slot], self.block_length
        begin = row.first + index * size
        row.careful_until = max(row.careful_until, row.start)
        row.start, row.step, row.lengths = begin, 0, row.lengths[:index]
        row.decoding, row.valid_from = True, self._serial + 1
        self._tokens[slot, begin:] = self.mask_token_id
        self._start[slot], self._step[slot], self._active[slot] = begin, 0, True
        row.careful = replace(row.rules, denoising_steps=steps, remasking_strategy="low_confidence_dynamic", gate=None)
        self._careful.put(slot, row.careful)
        self._careful_until[slot] = row.careful_until

    # -- decoding -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Block]]:
        """One denoising step of every slot that is being decoded; returns the blocks known to be finished."""
        rows = {slot: row for slot, row in self._rows.items() if row.decoding}
        launched = None
        if rows:
            if not self.fused:
                self._commit(rows)
            self._serial += 1
            self._run(self._plan(rows.values(), max(rows) + 1))
            launched = _Answer(self._serial, self._out, self._out_confidences)
        if self._lags:
            launched, self._outstanding = self._outstanding, launched
        return [] if launched is None else self._finished(*launched.read())

    def _plan(self, rows: Iterable[_Row], count: int) -> _Plan:
        """What the next pass needs. With an answer outstanding the host does not know where the slots stand."""
        rows = list(rows)
        size = self.block_length
        if self._lags:
            slots = min(self.slots, 1 << (count - 1).bit_length())
            longest = max(row.start for row in rows) + 3 * size
            several = any(row.anew or row.rules.denoising_steps > 1 for row in rows)
            wide, gated = True, any(row.rules.gate is not None for row in rows)
            span = min(self.rows, -(-longest // 256) * 256)
        else:
            slots, span = count, max(row.start for row in rows) + size
            several = any(row.step < row.current.denoising_steps - 1 for row in rows)
            wide = self.fused and any(row.step == 0 for row in rows)
            gated = any(row.current.gate is not None and row.step == row.current.denoising_steps - 1 for row in rows)
        anew = any(row.anew for row in rows)
        opening = self._lags or any(row.start <= row.first + size for row in rows)
        present = {rules.remasking_strategy for row in rows for rules in (row.rules, row.current)} if several else set()
        return _Plan(slots, span, wide, tuple(name for name in STRATEGIES if name in present), gated, anew, opening)

    def _pass(self, plan: _Plan) -> None:
        """One pass over the first slots; reads and writes the state on the device only."""
        n, size = plan.slots, self.block_length
        active = self._active[:n]
        start = torch.where(active, self._start[:n], size)  # slots with nothing to do work in the padding
        width = 2 * size if plan.wide else size
        at = (start - size if plan.wide else start).unsqueeze(1) + self._window[:width]
        hidden, ids = self._forward(at, start, plan.span, opening=plan.opening)
        logits = self.text.head(hidden[:, -size:])
        best, confidence, entropy = read_logits(
            logits, self.mask_token_id, entropy="entropy_bounded" in plan.strategies
        )
        at, ids = at[:, -size:], ids[:, -size:]
        answer = (at >= self._prompt_end[:n, None]) & active[:, None]
        masked = answer & (ids == self.mask_token_id)
        tokens = torch.where(masked, best, ids)
        ends = answer & (tokens.unsqueeze(-1) == self._ends[:n, None]).any(-1)
        rules = self._rules.first(n)
        if plan.anew:
            rules = self._careful.first(n).where(start < self._careful_until[:n], rules)
        chosen = masked
        if plan.strategies or plan.gated:
            said = torch.cat([self._said_before(start), torch.where(answer, tokens, -1)], dim=1) if plan.gated else None
            chosen = select(
                masked, ends, confidence, entropy, rules, self._step[:n], plan.strategies, gated=plan.gated, said=said
            )
            tokens = torch.where(chosen, tokens, ids)
        self._tokens[:n].scatter_(1, at, tokens)
        sure = torch.where(chosen, confidence.to(self._confidences.dtype), self._confidences[:n].gather(1, at))
        self._confidences[:n].scatter_(1, at, sure)
        finished = active & ~(masked & ~chosen).any(1)
        after = start + size * finished
        over = finished & ((ends.any(1)) | (after >= self._end[:n]))
        self._step[:n] = torch.where(active & ~finished, self._step[:n] + 1, 0)
        self._start[:n] = torch.where(active, after, self._start[:n])
        self._passes[:n] += active
        self._active[:n] = active & ~over
        flags = torch.stack([finished, active & ~over, self._passes[:n]], dim=1)
        torch.cat([flags, tokens], dim=1, out=self._out[:n])
        self._out_confidences[:n] = sure

    def _said_before(self, start: torch.Tensor) -> torch.Tensor:
        """The answers' tokens just before `start` (n,): (n, LOOK_BACK), -1 for what belongs to the prompt."""
        n = start.shape[0]
        at = start.unsqueeze(1) - self._behind
        tokens = self._tokens[:n].gather(1, at.clamp_min(0))
        return torch.where(at >= self._prompt_end[:n, None], tokens, -1)

    def _forward(
        self, at: torch.Tensor, start: torch.Tensor, span: int, *, opening: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the rows `at` (n, W) of the storage. Returns hidden states (n, W, hidden) and the tokens (n, W).

        `opening`: a window may touch a prompt, whose embeddings are not those of its tokens.
        """
        n, size = at.shape[0], self.block_length
        ids = self._tokens[:n].gather(1, at)
        embeds = self.text.embed(ids)
        if opening:
            offset = at - (self._first[:n, None] - size)
            given = (offset >= 0) & (offset < 2 * size) & (at < self._prompt_end[:n, None])
            prompt = self._opening[self._numbers[:n], offset.clamp(0, 2 * size - 1)]
            embeds = torch.where(given.unsqueeze(-1), prompt, embeds)
        clean = at < start.unsqueeze(1)
        reach = torch.where(clean, start.unsqueeze(1), start.unsqueeze(1) + size)
        # Padding is hidden, except from rows that stand in it: they must see something, or they become NaN.
        floor = torch.where(at < self.pad, 0, self.pad)
        keys = self._keys[:span]
        bias = self._bias((keys < reach.unsqueeze(-1)) & (keys >= floor.unsqueeze(-1)))
        hidden = self.text.forward(
            embeds,
            (self._cos[self._numbers[:n], at], self._sin[self._numbers[:n], at]),
            bias.unsqueeze(1),
            self.cache,
            (self._numbers[:n] * self.rows + at).flatten(),
            slice(0, n),
            slice(0, span),
        )
        return hidden, ids

    def _commit(self, rows: dict[int, _Row]) -> None:
        """Without fusing: run finished blocks once more, clean, before the next one is begun."""
        due = [slot for slot, row in rows.items() if row.step == 0 and row.start > row.first]
        if not due:
            return
        n = max(rows) + 1
        chosen = torch.zeros(n, dtype=torch.bool, device=self._active.device)
        chosen[due] = True
        start = torch.where(chosen, self._start[:n] - self.block_length, 0)
        at = start.unsqueeze(1) + self._window[: self.block_length]
        self._forward(at, start, max(rows[slot].start for slot in due), opening=True)
        self._passes[:n] += chosen

    def _bias(self, visible: torch.Tensor) -> torch.Tensor:
        kind = self._cos.dtype
        return torch.zeros(visible.shape, dtype=kind, device=visible.device).masked_fill_(
            ~visible, torch.finfo(kind).min
        )

    def _finished(
        self, serial: int, answers: list[list[int]], confidences: list[list[float]]
    ) -> list[tuple[int, Block]]:
        """Bring the host's knowledge up to date, and hand out what is finished."""
        blocks: list[tuple[int, Block]] = []
        for slot, (answer, values) in enumerate(zip(answers, confidences, strict=True)):
            row = self._rows.get(slot)
            if row is None or not row.decoding or serial < row.valid_from:
                continue
            finished, going, passes = answer[:_FLAGS]
            row.step += 1
            if not finished:
                continue
            row.decoding = bool(going)
            blocks.append((slot, self._block(row, answer[_FLAGS:], values, passes)))
        return blocks

    def _block(self, row: _Row, tokens: list[int], values: list[float], passes: int) -> Block:
        """Cut a finished block to what belongs to the answer."""
        index = len(row.lengths)
        opening = row.prompt.length + self.pad - row.first if index == 0 else 0
        new, values = tokens[opening:], values[opening:]
        end = next((at for at, token in enumerate(new) if token in row.rules.eos_token_ids), None)
        room = row.rules.gen_length - sum(row.lengths)
        kept = min(len(new) if end is None else end, room)
        block = Block(
            index,
            tuple(new[:kept]),
            tuple(values[:kept]),
            steps=row.step,
            forward_passes=passes - row.passes,
            gated=row.step > row.current.denoising_steps,
            ended=end is not None and end <= room,
            last=not row.decoding,
        )
        row.lengths += (kept,)
        row.passes, row.step, row.start = passes, 0, row.start + self.block_length
        return block


def storage_rows(capacity: int, block_length: int) -> int:
    """Rows of the cache for `capacity` tokens: whole blocks, and two blocks of padding in front."""
    return (math.ceil(capacity / block_length) + 2) * block_length
