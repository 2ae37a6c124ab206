"""Block diffusion decoding, one report at a time: the exact rules, written to be read beside docs/engine.md.

The sequence (prompt and answer) is cut into blocks of `block_length` counted from position 0. A token sees its own
block and every earlier one. The prompt is run once into the key-value cache; then each block starts as mask tokens and
is filled in `denoising_steps` forward passes. In the fused form the first pass over a block carries the finished block
before it as well, so that block's keys and values enter the cache without a pass of their own.
Method: ECHO (arXiv 2604.09450).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from echo_model.cache import BlockCache
from echo_model.errors import SettingsError
from echo_model.unmasking import DecodingRules, RemaskingStrategy, read_logits, select


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
    """One decoded block: its new tokens (without the end token and what follows) and how they came about."""

    index: int
    token_ids: tuple[int, ...]
    confidences: tuple[float, ...]
    steps: int
    forward_passes: int
    ended: bool


@dataclass(frozen=True)
class Generation:
    """A decoded answer.

    `token_ids` are cut before the first end token, `confidences` are the probabilities at the step that fixed each
    token, `forward_passes` counts decoding passes (the prompt's pass is not among them), `block_steps` the denoising
    steps of each block, `ended` says whether an end token was met within `gen_length`.
    """

    token_ids: list[int]
    confidences: list[float]
    forward_passes: int
    block_steps: list[int]
    ended: bool


def block_diffusion_generate(
    model: Any,
    input_ids: torch.Tensor,
    pixel_values: torch.Tensor | None,
    image_grid_thw: torch.Tensor | None,
    *,
    mask_token_id: int,
    eos_token_id: int | Sequence[int],
    block_length: int,
    gen_length: int,
    denoising_steps: int = 1,
    remasking_strategy: RemaskingStrategy = "low_confidence_dynamic",
    confidence_threshold: float = 0.85,
    entropy_bound: float = 0.35,
    fused: bool = True,
) -> Generation:
    """Decode one answer with a Hugging Face `Qwen2_5_VLForConditionalGeneration`.

    `input_ids` `(L,)` or `(1, L)`; `pixel_values` `(n_patches, patch_dim)` and `image_grid_thw` `(n_images, 3)` of all
    images in the prompt's order, or None. Greedy; the mask token is never chosen. Raises SettingsError.
    """
    rules = DecodingRules(
        mask_token_id=mask_token_id,
        eos_token_ids=(eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id),
        block_length=block_length,
        gen_length=gen_length,
        denoising_steps=denoising_steps,
        remasking_strategy=remasking_strategy,
        confidence_threshold=confidence_threshold,
        entropy_bound=entropy_bound,
        fused=fused,
    )
    prompt = prepare_prompt(model, input_ids, pixel_values, image_grid_thw)
    return collect(decode_blocks(model, prompt, rules))


def collect(blocks: Iterator[Block]) -> Generation:
    """Join streamed blocks."""
    whole = list(blocks)
    return Generation(
        token_ids=[token for block in whole for token in block.token_ids],
        confidences=[value for block in whole for value in block.confidences],
        forward_passes=sum(block.forward_passes for block in whole),
        block_steps=[block.steps for block in whole],
        ended=whole[-1].ended,
    )


@torch.inference_mode()
def prepare_prompt(
    model: Any, input_ids: torch.Tensor, pixel_values: torch.Tensor | None, image_grid_thw: torch.Tensor | None
) -> Prompt:
    """Run the vision tower, put its features where the image tokens are, and work out the positions, once for all."""
    ids = input_ids.reshape(1, -1) if input_ids.ndim == 1 else input_ids
    if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] == 0:
        raise SettingsError(f"input_ids must hold one prompt, (L,) or (1, L), not {tuple(input_ids.shape)}")
    attention = model.model.language_model.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise SettingsError(f"attention {attention!r} takes no block mask; load the model with 'sdpa'")
    embedding = model.model.language_model.embed_tokens
    ids = ids.to(embedding.weight.device)
    embeds = embedding(ids)
    at_image = ids == model.config.image_token_id
    features = grid = None
    if pixel_values is not None and image_grid_thw is not None:
        grid = image_grid_thw.to(ids.device)
        visual = model.model.visual
        features = visual(
            pixel_values.to(ids.device, visual.patch_embed.proj.weight.dtype), grid_thw=grid
        ).pooler_output
        if features.shape[0] != int(at_image.sum()):
            raise SettingsError(f"{int(at_image.sum())} image tokens in the prompt for {features.shape[0]} features")
        embeds = embeds.masked_scatter(at_image.unsqueeze(-1), features.to(embeds.dtype))
    elif at_image.any():
        raise SettingsError("the prompt has image tokens but no image was given")
    positions, delta = model.model.get_rope_index(ids, mm_token_type_ids=at_image.int(), image_grid_thw=grid)
    return Prompt(embeds, positions, int(delta), features)


def decode_blocks(model: Any, prompt: Prompt, rules: DecodingRules) -> Iterator[Block]:
    """Decode block by block. Every `next()` is one block's worth of work; stopping early leaves nothing behind.

    The first `next()` runs the prompt too.
    """
    decoder = BlockDecoder(model, prompt, rules)
    decoder.prefill()
    while not decoder.finished:
        yield decoder.next_block()


class BlockDecoder:
    """One answer in the making. Call `prefill` once, then `next_block` until `finished`.

    Holds the key-value cache, the finished block that is not committed yet, and how much has been returned.
    """

    def __init__(self, model: Any, prompt: Prompt, rules: DecodingRules) -> None:
        self.language_model = model.model.language_model
        self.head = model.lm_head
        self.prompt = prompt
        self.rules = rules
        size = rules.block_length
        self.aligned = prompt.length // size * size
        self.blocks = math.ceil((prompt.length + rules.gen_length - self.aligned) / size)
        self.cache = BlockCache(model.config.text_config, self.aligned + self.blocks * size, prompt.embeds)
        mask = torch.tensor([rules.mask_token_id], device=prompt.embeds.device)
        self.mask_embed = self.language_model.embed_tokens(mask)
        self.finished = False
        self._index = 0
        self._returned = 0
        self._pending: torch.Tensor | None = None  # clean embeddings of the block before, not in the cache yet

    @torch.inference_mode()
    def next_block(self) -> Block:
        """Decode the next block of the answer."""
        opening = self.prompt.embeds[0, self.aligned :] if self._index == 0 else self.prompt.embeds[0, :0]
        block, self._pending = self._decode_block(opening, self._pending, self.rules.gen_length - self._returned)
        self._returned += len(block.token_ids)
        self._index += 1
        self.finished = block.ended or self._index == self.blocks
        return block

    @torch.inference_mode()
    def prefill(self) -> None:
        """Run the whole blocks of the prompt; a tail shorter than a block waits for the first generated block."""
        if self.aligned == 0:
            return
        block = torch.arange(self.aligned, device=self.prompt.embeds.device) // self.rules.block_length
        visible = block[None, :] <= block[:, None]
        self._forward(self.prompt.embeds[:, : self.aligned], self.prompt.positions[:, :, : self.aligned], visible)
        self.cache.advance(self.aligned)

    def _decode_block(self, fixed: torch.Tensor, pending: torch.Tensor | None, room: int) -> tuple[Block, torch.Tensor]:
        """Denoise one block. Returns it and its clean embeddings.

        `fixed`: embeddings of prompt tokens that open the block. `pending`: clean embeddings of the block before, still
        to be committed. `room`: how many more tokens may be returned.
        """
        rules, size = self.rules, self.rules.block_length
        start = fixed.shape[0]
        passes = 0
        if pending is not None and not rules.fused:
            self._window(pending, None)
            self.cache.advance(size)
            passes, pending = 1, None
        embeds = torch.cat([fixed, self.mask_embed.expand(size - start, -1)])
        tokens = torch.full((size,), rules.mask_token_id, device=embeds.device)
        masked = torch.arange(size, device=embeds.device) >= start
        confidences = torch.ones(size, dtype=torch.float64, device=embeds.device)
        steps = 0
        while bool(masked.any()):
            hidden = self._window(embeds, pending)
            if pending is not None:
                self.cache.advance(size)
                pending = None
            best, confidence, entropy = read_logits(self.head(hidden), rules.mask_token_id)
            chosen = select(masked, confidence, entropy, rules, steps)
            tokens[chosen] = best[chosen]
            confidences[chosen] = confidence[chosen].double()
            embeds[chosen] = self.language_model.embed_tokens(best[chosen])
            masked &= ~chosen
            steps += 1
        new, values = tokens[start:].tolist(), confidences[start:].tolist()
        end = next((at for at, token in enumerate(new) if token in rules.eos_token_ids), None)
        kept = min(len(new) if end is None else end, room)
        ended = end is not None and end <= room
        return Block(self._index, tuple(new[:kept]), tuple(values[:kept]), steps, passes + steps, ended), embeds

    def _window(self, current: torch.Tensor, pending: torch.Tensor | None) -> torch.Tensor:
        """One decoding pass; returns the hidden states (block, hidden) of the current block.

        Writes keys and values behind the committed ones without committing any. With `pending` the window is twice as
        wide: the pending rows see the cache and themselves, the current rows see all.
        """
        size = self.rules.block_length
        rows = current if pending is None else torch.cat([pending, current])
        width = rows.shape[0]
        visible = torch.ones(width, self.cache.length + width, dtype=torch.bool, device=rows.device)
        if pending is not None:
            visible[:size, self.cache.length + size :] = False
        # The answer's positions are the sequence index plus the prompt's rotary offset, the same on all three axes.
        # The prompt's tail keeps its own: it may reach into a picture.
        first = self.cache.length
        positions = torch.arange(first, first + width, device=rows.device).expand(3, 1, -1) + self.prompt.rope_delta
        tail = self.prompt.positions[:, :, first : first + width]
        positions = torch.cat([tail, positions[:, :, tail.shape[2] :]], dim=2)
        return self._forward(rows.unsqueeze(0), positions, visible)[-size:]

    def _forward(self, embeds: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Run rows behind the cache through the model; `visible` is (rows, cache + rows). Returns (rows, hidden)."""
        mask = torch.zeros(visible.shape, dtype=embeds.dtype, device=embeds.device)
        mask.masked_fill_(~visible, torch.finfo(embeds.dtype).min)
        output = self.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask={"full_attention": mask[None, None]},
            past_key_values=self.cache,
            use_cache=True,
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden
