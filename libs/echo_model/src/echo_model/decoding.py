"""Block diffusion decoding as a function of a model and its inputs: `block_diffusion_generate`.

The rules themselves are in `slots`; here prompts are prepared and blocks are joined.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from echo_model.errors import SettingsError
from echo_model.slots import Block, Prompt, SlotDecoder
from echo_model.text_model import TextModel
from echo_model.unmasking import DecodingRules, RemaskingStrategy
from echo_model.vision_tower import vision_features

__all__ = ["Block", "Generation", "Prompt", "block_diffusion_generate", "collect", "decode_blocks", "prepare_prompt"]


@dataclass(frozen=True)
class Generation:
    """A decoded answer.

    `token_ids` are cut before the first end token, `confidences` are the probabilities at the step that fixed each
    token, `forward_passes` counts decoding passes (the prompt's pass is not among them), `block_steps` the denoising
    steps of each block, `gated_blocks` how many of them the gate gave one step more, `ended` says whether an end token
    was met within `gen_length`.
    """

    token_ids: list[int]
    confidences: list[float]
    forward_passes: int
    block_steps: list[int]
    gated_blocks: int
    ended: bool


def block_diffusion_generate(
    model: Any,
    input_ids: torch.Tensor | Sequence[torch.Tensor],
    pixel_values: torch.Tensor | None = None,
    image_grid_thw: torch.Tensor | None = None,
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
    gate: float | None = None,
    attention_mask: torch.Tensor | None = None,
) -> Any:
    """Decode with a Hugging Face `Qwen2_5_VLForConditionalGeneration`.

    `input_ids`: one prompt, `(L,)` or `(1, L)`, which gives one `Generation`; or several, `(N, L)` or a sequence of
    `(L_i,)` of different lengths, which gives a list. `attention_mask` `(N, L)` names the real tokens of padded rows
    (on either side). `pixel_values` `(n_patches, patch_dim)` and `image_grid_thw` `(n_images, 3)`: all images of all
    prompts in order, or None. Greedy; the mask token is never chosen. A prompt's answer does not depend on the others.
    Raises SettingsError.
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
        gate=gate,
    )
    rows, single = _rows(input_ids, attention_mask)
    prompts = prepare_prompts(model, rows, pixel_values, image_grid_thw)
    answers = generate_answers(TextModel(model), prompts, rules)
    return answers[0] if single else answers


def generate_answers(text: TextModel, prompts: Sequence[Prompt], rules: DecodingRules) -> list[Generation]:
    """Decode several prepared prompts together, each with the same rules."""
    blocks: list[list[Block]] = [[] for _ in prompts]
    for slot, block in _decode(text, prompts, rules):
        blocks[slot].append(block)
    return [collect(own) for own in blocks]


def decode_blocks(model: Any, prompt: Prompt, rules: DecodingRules) -> Iterator[Block]:
    """Decode one answer block by block; stopping early leaves nothing behind. The first `next()` runs the prompt."""
    for _, block in _decode(TextModel(model), [prompt], rules):
        yield block


def _decode(text: TextModel, prompts: Sequence[Prompt], rules: DecodingRules) -> Iterator[tuple[int, Block]]:
    capacity = max(math.ceil((prompt.length + rules.gen_length) / rules.block_length) for prompt in prompts)
    decoder = SlotDecoder(
        text,
        slots=len(prompts),
        capacity=capacity * rules.block_length,
        block_length=rules.block_length,
        mask_token_id=rules.mask_token_id,
        fused=rules.fused,
    )
    for slot, prompt in enumerate(prompts):
        decoder.admit(slot, prompt, rules)
        decoder.prefill(slot)
    while decoder.decoding:
        yield from decoder.step()


def collect(blocks: Iterable[Block]) -> Generation:
    """Join the blocks of one answer."""
    whole = list(blocks)
    return Generation(
        token_ids=[token for block in whole for token in block.token_ids],
        confidences=[value for block in whole for value in block.confidences],
        forward_passes=sum(block.forward_passes for block in whole),
        block_steps=[block.steps for block in whole],
        gated_blocks=sum(block.gated for block in whole),
        ended=whole[-1].ended,
    )


def _rows(
    input_ids: torch.Tensor | Sequence[torch.Tensor], attention_mask: torch.Tensor | None
) -> tuple[list[torch.Tensor], bool]:
    """The prompts as (L_i,) each, and whether the caller means a single one."""
    if isinstance(input_ids, torch.Tensor):
        single = input_ids.ndim == 1 or (input_ids.ndim == 2 and input_ids.shape[0] == 1)
        rows = [input_ids] if input_ids.ndim == 1 else list(input_ids)
    else:
        single, rows = False, list(input_ids)
    if attention_mask is not None:
        if not isinstance(input_ids, torch.Tensor) or attention_mask.shape != input_ids.shape:
            raise SettingsError("attention_mask must have the shape of input_ids")
        kept = attention_mask.reshape(len(rows), -1).bool()
        rows = [row[mask] for row, mask in zip(rows, kept, strict=True)]
    if not rows or any(row.ndim != 1 or row.shape[0] == 0 for row in rows):
        raise SettingsError("input_ids must hold prompts of at least one token: (L,), (N, L) or a list of (L,)")
    return rows, single


def prepare_prompt(
    model: Any, input_ids: torch.Tensor, pixel_values: torch.Tensor | None, image_grid_thw: torch.Tensor | None
) -> Prompt:
    """`prepare_prompts` for one prompt, `(L,)` or `(1, L)`."""
    rows, single = _rows(input_ids, None)
    if not single:
        raise SettingsError(f"input_ids must hold one prompt, (L,) or (1, L), not {tuple(input_ids.shape)}")
    return prepare_prompts(model, rows, pixel_values, image_grid_thw)[0]


@torch.inference_mode()
def prepare_prompts(
    model: Any,
    rows: Sequence[torch.Tensor],
    pixel_values: torch.Tensor | None,
    image_grid_thw: torch.Tensor | None,
) -> list[Prompt]:
    """Run the vision tower, put its features where the image tokens are, and work out the positions, once for all.

    Raises SettingsError when images and image tokens do not agree.
    """
    device = model.model.language_model.embed_tokens.weight.device
    merge = model.config.vision_config.spatial_merge_size
    grids: list[list[int]] = [] if image_grid_thw is None else image_grid_thw.tolist()
    features = None
    if pixel_values is not None and image_grid_thw is not None:
        visual = model.model.visual
        kind = visual.patch_embed.proj.weight.dtype
        features = vision_features(visual, pixel_values.to(device, kind), image_grid_thw)
    sizes = [math.prod(grid) // merge**2 for grid in grids] if features is not None else []
    wanted = [int((row == model.config.image_token_id).sum()) for row in rows]
    if features is None and any(wanted):
        raise SettingsError("the prompt has image tokens but no image was given")
    prompts, used = [], 0
    for row, tokens in zip(rows, wanted, strict=True):
        first, filled = used, 0
        while filled < tokens and used < len(sizes):
            filled += sizes[used]
            used += 1
        if filled != tokens:
            raise SettingsError(f"{tokens} image tokens in the prompt for {filled} features")
        begin = sum(sizes[:first])
        own = None if features is None or used == first else features[begin : begin + filled]
        prompts.append(
            _prompt(model, row.to(device), own, torch.tensor(grids[first:used]) if own is not None else None)
        )
    if used < len(sizes):
        raise SettingsError(f"{sum(sizes)} image features were given, the prompts have tokens for {sum(sizes[:used])}")
    return prompts


def _prompt(model: Any, row: torch.Tensor, features: torch.Tensor | None, grid: torch.Tensor | None) -> Prompt:
    ids = row.unsqueeze(0)
    at_image = ids == model.config.image_token_id
    embeds = model.model.language_model.embed_tokens(ids)
    if features is not None:
        embeds = embeds.masked_scatter(at_image.unsqueeze(-1), features.to(embeds.dtype))
        grid = None if grid is None else grid.to(ids.device)
    positions, delta = model.model.get_rope_index(ids, mm_token_type_ids=at_image.int(), image_grid_thw=grid)
    return Prompt(embeds, positions, int(delta), features)
