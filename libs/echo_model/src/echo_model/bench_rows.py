"""The rows of `echo-model bench`: what is measured, and how each is run once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from echo_model import demo_checkpoint_path
from echo_model.bench_floor import Work, decode_work, prefill_work, vision_work
from echo_model.bench_loops import (
    BlockDiffusion,
    OwnAutoregressive,
    Timing,
    autoregressive,
    huggingface_generate,
    now,
    plain_loop,
)
from echo_model.bench_shapes import SEED, SHAPES, random_model
from echo_model.decoding import prepare_prompt
from echo_model.errors import SettingsError
from echo_model.images import n_image_tokens, preprocess
from echo_model.model import load_model
from echo_model.prompt import build_prompt
from echo_model.slots import Prompt, SlotDecoder
from echo_model.text_model import TextModel
from echo_model.unmasking import DecodingRules
from echo_model.vision_tower import vision_features

HEADLINE_BLOCK = 8
"""The block length whose rows the ratios compare."""
_DEMO_TOKENS = 128
_GRAPH_WARM_UPS = 3  # a pass is recorded the third time that it occurs


@dataclass(frozen=True)
class Subject:
    """What is measured: a model, its prompt with the inputs it was made of, its mask token, and the number of tokens
    that every variant decodes."""

    model: Any
    prompt: Prompt
    ids: torch.Tensor
    pixels: torch.Tensor
    grids: torch.Tensor
    mask_token_id: int
    tokens: int

    @classmethod
    def of(
        cls, model: Any, ids: torch.Tensor, pixels: torch.Tensor, grids: torch.Tensor, mask_token_id: int, tokens: int
    ) -> Subject:
        """From ids (L,), patches and grids (1, 3) on the CPU."""
        device = model.lm_head.weight.device
        pixels = pixels.to(device, model.model.visual.patch_embed.proj.weight.dtype)
        return cls(model, prepare_prompt(model, ids, pixels, grids), ids, pixels, grids, mask_token_id, tokens)

    def prepare(self) -> Prompt:
        """The prompt anew: vision tower, embeddings, positions."""
        return prepare_prompt(self.model, self.ids, self.pixels, self.grids)


@dataclass(frozen=True)
class Row:
    """One row of the table. `run` does it once; `work` is the least that one pass of it has to do, if known.

    `kind`: decode, vision, prefill or end to end. `needed` rows are compared in the ratios and never left out for
    want of time. `warm_ups`: runs before the first that counts.
    """

    name: str
    kind: str
    run: Callable[[], Timing]
    work: Work | None = None
    block: int | None = None
    batch: int = 1
    needed: bool = False
    warm_ups: int = 1


def subject(name: str, device: torch.device, dtype: torch.dtype, tokens: int | None = None) -> Subject:
    """The demo checkpoint with a drawn phantom, or random weights with a random picture. Raises SettingsError."""
    if name == "demo":
        return _demo(device, dtype, tokens)
    shape = SHAPES[name]
    if shape.needs_cuda and device.type != "cuda":
        raise SettingsError(f"shape {name} is measured on a CUDA device only (--device cuda)")
    model = random_model(shape, device, dtype)
    pictured = shape.grid[0] * shape.grid[1] // 4
    generator = torch.Generator().manual_seed(SEED)
    words = torch.randint(5, shape.text["vocab_size"], (shape.prompt_tokens - pictured,), generator=generator)
    ids = torch.cat([words[:8], torch.full((pictured,), 1), words[8:]])
    pixels = torch.randn(shape.grid[0] * shape.grid[1], 3 * 2 * 14 * 14, generator=generator)
    return Subject.of(model, ids, pixels, torch.tensor([[1, *shape.grid]]), 4, tokens or shape.tokens)


def _demo(device: torch.device, dtype: torch.dtype, tokens: int | None) -> Subject:
    from echo_model.data.phantoms import generate_phantom

    loaded = load_model(demo_checkpoint_path(), device, dtype)
    pixels, grid = preprocess(generate_phantom(SEED, 0).image, loaded.image_config)
    instruction = loaded.generation_config.get("instruction")
    ids = build_prompt(loaded.tokenizer, [n_image_tokens(grid, loaded.image_config)], instruction=instruction)
    grids = torch.from_numpy(grid)[None]
    return Subject.of(
        loaded.model, torch.tensor(ids), torch.from_numpy(pixels), grids, loaded.mask_token_id, tokens or _DEMO_TOKENS
    )


def all_rows(what: Subject, blocks: Sequence[int], batches: Sequence[int]) -> list[Row]:
    """Every row, those that the ratios need first."""
    text = TextModel(what.model, packed=True)
    rows = [*_fused(what, text, blocks, batches), *_others(what, text), *_parts(what, text)]
    return sorted(rows, key=lambda row: not row.needed)


def rules(what: Subject, block: int, *, fused: bool = True) -> DecodingRules:
    """Greedy, one step a block, and an end token that no token is, so that decoding never ends early."""
    never = what.model.config.text_config.vocab_size
    return DecodingRules(what.mask_token_id, (never,), block, what.tokens, fused=fused)


def _decode_work(what: Subject, batch: int, window: int, shown: int) -> Work:
    return decode_work(what.model, batch, window, shown, what.prompt.length + what.tokens // 2)


def _fused(what: Subject, text: TextModel, blocks: Sequence[int], batches: Sequence[int]) -> list[Row]:
    """The engine's decoding at every block length and batch, and whole studies at the headline block."""
    warm_ups = _warm_ups(what)
    rows = []
    for block in blocks:
        for batch in batches:
            loop = BlockDiffusion(text, what.prompt, rules(what, block), batch)
            work = _decode_work(what, batch, 2 * block, block)
            needed = block == HEADLINE_BLOCK and batch in (1, 8)
            rows.append(Row(f"fused block {block}", "decode", loop.decode, work, block, batch, needed, warm_ups))
            if block == HEADLINE_BLOCK:
                rows.append(Row("end to end", "end to end", _whole(loop, what), None, block, batch))
    return rows


def _warm_ups(what: Subject) -> int:
    return _GRAPH_WARM_UPS if what.prompt.embeds.is_cuda else 1


def _whole(loop: BlockDiffusion, what: Subject) -> Callable[[], Timing]:
    return lambda: loop.end_to_end(what.prepare)


def _others(what: Subject, text: TextModel) -> list[Row]:
    """What the fused loop is compared with, one report at a time."""
    block, model, mask = HEADLINE_BLOCK, what.model, what.mask_token_id
    narrow = _decode_work(what, 1, block, block)
    single = _decode_work(what, 1, 1, 1)
    unfused = BlockDiffusion(text, what.prompt, rules(what, block, fused=False))
    own = OwnAutoregressive(text, what.prompt, what.tokens, mask)
    ids = what.ids.to(what.prompt.embeds.device).unsqueeze(0)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": what.pixels,
        "image_grid_thw": what.grids.to(ids.device),
        "mm_token_type_ids": (ids == model.config.image_token_id).int(),
    }
    rows = [
        Row(f"unfused block {block}", "decode", unfused.decode, narrow, block, needed=True, warm_ups=_warm_ups(what)),
        Row(
            "Hugging Face autoregressive",
            "decode",
            lambda: autoregressive(model, what.prompt, what.tokens, mask),
            single,
            1,
            needed=True,
        ),
        Row("own autoregressive", "decode", own.decode, single, 1, needed=True),
        Row("Hugging Face generate", "decode", lambda: huggingface_generate(model, inputs, what.tokens), single, 1),
    ]
    if find_spec("torchao") is not None:
        rows.append(_small(what, text))
    if what.prompt.length % block == 0:
        wide = _decode_work(what, 1, 2 * block, 2 * block)
        plain = rules(what, block)
        rows.append(
            Row(
                f"plain loop block {block}",
                "decode",
                lambda: plain_loop(model, what.prompt, plain),
                wide,
                block,
                needed=True,
            )
        )
    return rows


def _small(what: Subject, text: TextModel) -> Row:
    """The engine's decoding on 8-bit weights, which are made when the row is warmed up."""
    from echo_model.quantise import quantised

    loops: list[BlockDiffusion] = []

    def run() -> Timing:
        if not loops:
            loops.append(BlockDiffusion(quantised(text), what.prompt, rules(what, HEADLINE_BLOCK)))
        return loops[0].decode()

    name = f"fused block {HEADLINE_BLOCK}, 8-bit weights"
    return Row(name, "decode", run, None, HEADLINE_BLOCK, warm_ups=_warm_ups(what))


def _parts(what: Subject, text: TextModel) -> list[Row]:
    """Vision tower and prompt of one study, ours and stock."""
    visual, device = what.model.model.visual, what.prompt.embeds.device
    grids = what.grids.to(device)
    seeing = vision_work(what.model, (int(what.grids[0, 1]), int(what.grids[0, 2])))
    reading = prefill_work(what.model, what.prompt.length)
    settings = rules(what, HEADLINE_BLOCK)
    capacity = -(-(what.prompt.length + settings.gen_length) // HEADLINE_BLOCK) * HEADLINE_BLOCK
    decoder: list[SlotDecoder] = []

    def own_prefill() -> None:
        if not decoder:
            decoder.append(
                SlotDecoder(
                    text, slots=1, capacity=capacity, block_length=HEADLINE_BLOCK, mask_token_id=what.mask_token_id
                )
            )
        decoder[0].admit(0, what.prompt, settings)
        decoder[0].prefill(0)
        decoder[0].release(0)

    def once(work: Callable[[], object]) -> Callable[[], Timing]:
        def run() -> Timing:
            begun = now(device)
            with torch.inference_mode():
                work()
            return Timing(now(device) - begun, 1, [])

        return run

    return [
        Row(
            "vision tower, windows batched", "vision", once(lambda: vision_features(visual, what.pixels, grids)), seeing
        ),
        Row("vision tower, stock", "vision", once(lambda: visual(what.pixels, grid_thw=grids)), seeing),
        Row("prefill", "prefill", once(own_prefill), reading),
    ]
