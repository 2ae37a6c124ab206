from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_model.decoding import block_diffusion_generate, collect, decode_blocks, prepare_prompt
from echo_model.errors import SettingsError
from echo_model.slots import Block, SlotDecoder
from echo_model.text_model import TextModel
from echo_model.unmasking import DecodingRules, RemaskingStrategy, RowRules, select
from unit.echo_model.reference_decoding import reference_generate
from unit.echo_model.tiny_checkpoint import IM_END, IMAGE_PAD, MASK, VOCABULARY, tiny_model

STRATEGIES: tuple[RemaskingStrategy, ...] = (
    "low_confidence_dynamic",
    "low_confidence_static",
    "sequential",
    "entropy_bounded",
)
# query heads, key-value heads, head dimension, layers, tied
SHAPES = ((4, 4, 16, 2, True), (4, 2, 12, 3, False), (7, 1, 16, 2, True))
GRIDS = ((1, 4, 4), (1, 4, 6), (1, 2, 6))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models() -> list[Any]:
    return [
        tiny_model(seed, torch.float64, heads=heads, kv_heads=kv, width=width, layers=layers, tied=tied)
        for seed, (heads, kv, width, layers, tied) in enumerate(SHAPES)
    ]


def make_prompt(seed: int, images: int, length: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Random prompt of exactly `length` tokens with images early in it."""
    draw = torch.Generator().manual_seed(seed)
    ids = [0]
    for at in range(images):
        ids += [2, *[IMAGE_PAD] * (GRIDS[at][1] * GRIDS[at][2] // 4), 3]
    text = torch.randint(6, 250, (length - len(ids),), generator=draw)
    whole = torch.cat([torch.tensor(ids), text]).unsqueeze(0)
    if not images:
        return whole, None, None
    grid = torch.tensor(GRIDS[:images])
    pixels = torch.randn(int(grid.prod(-1).sum()), 3 * 2 * 14 * 14, generator=draw, dtype=torch.float64)
    return whole, pixels, grid


def run(model: Any, prompt: Any, rules: DecodingRules, *, fused: bool) -> Any:
    ids, pixels, grid = prompt
    return block_diffusion_generate(
        model,
        ids,
        pixels,
        grid,
        mask_token_id=rules.mask_token_id,
        eos_token_id=rules.eos_token_ids,
        block_length=rules.block_length,
        gen_length=rules.gen_length,
        denoising_steps=rules.denoising_steps,
        remasking_strategy=rules.remasking_strategy,
        confidence_threshold=rules.confidence_threshold,
        entropy_bound=rules.entropy_bound,
        fused=fused,
        gate=rules.gate,
    )


def cases() -> list[tuple[Any, ...]]:
    """Every remainder of every block length, the other axes dealt out in turn, each combination once."""
    others = list(itertools.product(range(3), (0, 1, 2), (1, 2, 3, 4), STRATEGIES))
    random.Random(5).shuffle(others)
    grid = [(block, remainder) for block in (4, 8, 16) for remainder in range(block)]
    grid += [(4, 0), (8, 0), (16, 0)] * 2
    return [
        (shape, block, remainder, images, steps, strategy)
        for (block, remainder), (shape, images, steps, strategy) in zip(grid, others, strict=False)
    ]


@pytest.mark.parametrize(("shape", "block", "remainder", "images", "steps", "strategy"), cases())
def test_fused_unfused_and_cache_free_decoding_agree_token_for_token(
    models: list[Any], shape: int, block: int, remainder: int, images: int, steps: int, strategy: Any
) -> None:
    model = models[shape]
    base = -(-(4 + 10 * images) // block) * block
    prompt = make_prompt(shape * 100 + remainder, images, base + remainder)
    rules = DecodingRules(
        MASK, (IM_END,), block, 3 * block, steps, strategy, confidence_threshold=0.3, entropy_bound=2.0
    )
    free = reference_generate(model, *prompt, rules)
    if len(set(free.token_ids)) > 2:
        # End in the middle: take a token that first appears late in the answer as the end token.
        late = max(free.token_ids, key=free.token_ids.index)
        rules = DecodingRules(
            MASK, (IM_END, late), block, 3 * block, steps, strategy, confidence_threshold=0.3, entropy_bound=2.0
        )
        free = reference_generate(model, *prompt, rules)
        assert late not in free.token_ids
    for fused in (True, False):
        got = run(model, prompt, rules, fused=fused)
        assert got.token_ids == free.token_ids
        assert got.block_steps == free.block_steps
        assert got.ended == free.ended
        assert got.confidences == pytest.approx(free.confidences, abs=1e-6)
        commits = 0 if fused else len(free.block_steps) - 1
        assert got.forward_passes == free.forward_passes + commits


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_any_prompt(models: list[Any], data: st.DataObject) -> None:
    """Up to three images and twelve blocks."""
    model = models[data.draw(st.integers(0, 2))]
    block, blocks = data.draw(st.sampled_from(((4, 12), (8, 7), (16, 3), (32, 2))))
    images = data.draw(st.integers(1, 3))
    prompt = make_prompt(data.draw(st.integers(0, 999)), images, 34 + data.draw(st.integers(0, 20)))
    rules = DecodingRules(MASK, (IM_END,), block, data.draw(st.integers(1, block * blocks)))
    wanted = reference_generate(model, *prompt, rules)
    for fused in (True, False):
        got = run(model, prompt, rules, fused=fused)
        assert got.token_ids == wanted.token_ids
        commits = 0 if fused else len(wanted.block_steps) - 1
        assert got.forward_passes == len(wanted.block_steps) + commits


def test_prompts_of_different_lengths_decoded_together_each_get_their_own_answer(models: list[Any]) -> None:
    draw = random.Random(3)
    for turn in range(6):
        model, block = models[turn % 3], (4, 8, 16)[turn // 2]
        parts = [make_prompt(70 + 10 * turn + at, draw.choice((0, 1, 2)), draw.randint(26, 50)) for at in range(5)]
        rules = DecodingRules(
            MASK, (IM_END,), block, 3 * block + 1, draw.randint(1, 4), STRATEGIES[turn % 4], 0.3, 2.0, gate=0.5
        )
        alone = [reference_generate(model, *part, rules) for part in parts]
        rows = [part[0][0] for part in parts]
        pixels = torch.cat([part[1] for part in parts if part[1] is not None])
        grid = torch.cat([part[2] for part in parts if part[2] is not None])
        for fused in (True, False):
            together = run(model, (rows, pixels, grid), rules, fused=fused)
            for got, wanted in zip(together, alone, strict=True):
                assert got.token_ids == wanted.token_ids
                assert got.block_steps == wanted.block_steps
                assert got.gated_blocks == wanted.gated_blocks
                assert got.ended == wanted.ended
                assert got.confidences == pytest.approx(wanted.confidences, abs=1e-6)
                commits = 0 if fused else len(wanted.block_steps) - 1
                assert got.forward_passes == wanted.forward_passes + commits
        longest = max(len(row) for row in rows)
        padded = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0), value=MASK) for row in rows])
        real = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows])
        got = block_diffusion_generate(
            model,
            padded,
            pixels,
            grid,
            mask_token_id=MASK,
            eos_token_id=[IM_END],
            block_length=block,
            gen_length=rules.gen_length,
            denoising_steps=rules.denoising_steps,
            remasking_strategy=rules.remasking_strategy,
            confidence_threshold=0.3,
            entropy_bound=2.0,
            gate=0.5,
            attention_mask=real,
        )
        assert [answer.token_ids for answer in got] == [answer.token_ids for answer in alone]


def test_the_gate_gives_doubtful_blocks_one_step_more(models: list[Any]) -> None:
    prompt = make_prompt(3, 1, 19)
    plain = run(models[0], prompt, DecodingRules(MASK, (IM_END,), 8, 24), fused=True)
    lowest = min(plain.confidences)
    for gate, gated in ((0.0, 0), (lowest - 1e-6, None), (1.0, len(plain.block_steps))):
        rules = DecodingRules(MASK, (IM_END,), 8, 24, gate=gate)
        got = run(models[0], prompt, rules, fused=True)
        by_hand = reference_generate(models[0], *prompt, rules)
        assert gated in (None, got.gated_blocks)  # with a gate that all pass, repeats alone raise doubt
        assert (got.token_ids, got.block_steps) == (by_hand.token_ids, by_hand.block_steps)
        assert got.forward_passes == len(plain.block_steps) + got.gated_blocks


ALL = [True] * 4


def test_the_gate_keeps_the_sure_tokens_and_does_not_look_behind_the_end() -> None:
    rules = RowRules.of([DecodingRules(MASK, (IM_END,), 4, 8, gate=0.5)])
    masked = torch.tensor([[True] * 4])

    def fixed(confidence: list[float], end: int | None, step: int = 0) -> list[int]:
        ends = torch.tensor([[at == end for at in range(4)]])
        sure = torch.tensor([confidence])
        got = select(masked, ends, sure, torch.zeros(1, 4), rules, torch.tensor([step]))
        return [int(at) for at in got[0].nonzero().flatten()]

    assert fixed([0.9, 0.4, 0.8, 0.3], None) == [0, 2]
    assert fixed([0.4, 0.3, 0.2, 0.1], None) == [0], "one token at least, or the next step would see the same"
    assert fixed([0.9, 0.9, 0.1, 0.1], 1) == [0, 1, 2, 3]
    assert fixed([0.9, 0.4, 0.1, 0.1], 1) == [0], "the end token itself may be in doubt"
    assert fixed([0.9, 0.4, 0.8, 0.3], None, step=1) == [0, 1, 2, 3]


def test_the_gate_doubts_a_token_that_repeats_one_beside_it() -> None:
    def fixed(said: list[int], confidence: list[float], masked: list[bool] = ALL, end: int | None = None) -> list[int]:
        rules = RowRules.of([DecodingRules(MASK, (IM_END,), 4, 8, gate=0.5)])
        ends = torch.tensor([[at == end for at in range(4)]])
        got = select(
            torch.tensor([masked]),
            ends,
            torch.tensor([confidence]),
            torch.zeros(1, 4),
            rules,
            torch.tensor([0]),
            said=torch.tensor([said]),
        )
        return [int(at) for at in got[0].nonzero().flatten()]

    sure = [0.9, 0.8, 0.95, 0.85]
    assert fixed([1, 2, 3, 4, 5, 6], sure) == [0, 1, 2, 3]
    assert fixed([1, 2, 3, 4, 4, 6], sure) == [0, 2, 3], "of two equal neighbours the less sure one"
    assert fixed([1, 2, 3, 4, 3, 6], sure) == [1, 2, 3], "one word between them"
    assert fixed([1, 2, 3, 4, 5, 3], sure) == [0, 1, 2, 3], "further apart is no matter"
    assert fixed([1, 2, 2, 4, 5, 6], sure) == [1, 2, 3], "what an earlier block said stays"
    assert fixed([4, 2, 3, 4, 5, 6], sure) == [0, 1, 2, 3]
    assert fixed([-1, -1, -1, 4, 5, 6], sure, [False, True, True, True]) == [1, 2, 3], "a prompt repeats nothing"
    assert fixed([1, 2, 3, 4, 4, 6], sure, [True, False, True, True]) == [0, 3], "a token that is fixed stays"
    assert fixed([1, 2, 3, 9, 9, 9], sure, end=1) == [0, 1, 2, 3], "behind the end"


@pytest.mark.parametrize("lagging", [False, True])
def test_slots_that_come_and_go_at_any_time(models: list[Any], lagging: bool) -> None:
    """Also in the manner of a GPU, where the host hears of a step when the next one is already under way."""
    draw = random.Random(8)
    model = models[1]
    prompts = [make_prompt(40 + at, at % 3, 26 + 5 * at) for at in range(9)]
    rules = [
        DecodingRules(MASK, (IM_END,), 8, draw.randint(5, 40), steps, STRATEGIES[at % 4], 0.3, 2.0, gate=gate)
        for at, (steps, gate) in enumerate([(1, None), (1, 0.5), (3, None), (1, None), (8, 0.4)] * 2)
    ]
    wanted = [reference_generate(model, *prompt, rule) for prompt, rule in zip(prompts, rules, strict=False)]
    decoder = SlotDecoder(TextModel(model), slots=3, capacity=128, block_length=8, mask_token_id=MASK, lagging=lagging)
    waiting, inside = list(range(9)), dict[int, int]()
    blocks: dict[int, list[Block]] = {at: [] for at in waiting}
    while waiting or inside:
        for slot in range(3):
            if slot not in inside and waiting and draw.random() < 0.6:
                inside[slot] = waiting.pop(0)
                decoder.admit(slot, prepare_prompt(model, *prompts[inside[slot]]), rules[inside[slot]])
        for slot in inside:
            if not decoder._rows[slot].decoding and not blocks[inside[slot]]:
                decoder.prefill(slot, 8)
        for slot, block in decoder.step():
            blocks[inside[slot]].append(block)
            if block.last:
                decoder.release(slot)
                del inside[slot]
    for at, own in blocks.items():
        got = collect(own)
        assert got.token_ids == wanted[at].token_ids
        assert got.block_steps == wanted[at].block_steps
        assert got.gated_blocks == wanted[at].gated_blocks


@pytest.mark.parametrize("lagging", [False, True])
def test_blocks_decoded_anew_with_more_steps(models: list[Any], lagging: bool) -> None:
    """Two of four blocks again, beside a neighbour that goes on; then the request's own rules hold again."""
    model, rules = models[0], DecodingRules(MASK, (IM_END,), 8, 48)
    (ids, pixels, grid), other = make_prompt(3, 1, 19), make_prompt(9, 0, 30)
    careful = DecodingRules(MASK, (IM_END,), 8, 16, 8)
    head = reference_generate(model, ids, pixels, grid, DecodingRules(MASK, (IM_END,), 8, 13)).token_ids
    again = torch.cat([ids, torch.tensor([head])], dim=1)
    middle = reference_generate(model, again, pixels, grid, careful)
    again = torch.cat([again, torch.tensor([middle.token_ids])], dim=1)
    tail = reference_generate(model, again, pixels, grid, DecodingRules(MASK, (IM_END,), 8, 19))
    decoder = SlotDecoder(TextModel(model), slots=2, capacity=80, block_length=8, mask_token_id=MASK, lagging=lagging)
    for slot, prompt in enumerate(((ids, pixels, grid), other)):
        decoder.admit(slot, prepare_prompt(model, *prompt), rules)
        decoder.prefill(slot)
    blocks: list[Block] = []
    beside: list[Block] = []
    rewound = False
    while decoder.decoding:
        for slot, block in decoder.step():
            if slot == 1:
                beside.append(block)
                continue
            del blocks[block.index :]
            blocks.append(block)
            if block.index == 3 and not rewound:
                decoder.rewind(0, 2, steps=8)
                rewound = True
    got = collect(blocks)
    assert got.token_ids == [*head, *middle.token_ids, *tail.token_ids]
    assert got.block_steps[2:4] == middle.block_steps
    assert max(middle.block_steps) > 1, "or the test shows nothing"
    assert collect(beside).token_ids == reference_generate(model, *other, rules).token_ids


def test_several_steps_differ_from_one_step_so_the_comparison_means_something(models: list[Any]) -> None:
    prompt = make_prompt(1, 1, 24)
    runs: list[tuple[int, RemaskingStrategy]] = [(1, "sequential"), (4, "sequential"), (4, "low_confidence_static")]
    answers = {
        tuple(run(models[0], prompt, DecodingRules(MASK, (IM_END,), 8, 32, steps, strategy), fused=True).token_ids)
        for steps, strategy in runs
    }
    assert len(answers) == 3


def test_the_picture_and_the_prompt_change_the_answer(models: list[Any]) -> None:
    rules = DecodingRules(MASK, (IM_END,), 8, 16)
    ids, pixels, grid = make_prompt(1, 1, 24)
    assert pixels is not None
    seen = run(models[0], (ids, pixels, grid), rules, fused=True).token_ids
    assert run(models[0], (ids, -pixels, grid), rules, fused=True).token_ids != seen
    assert run(models[0], (ids.roll(1, 1), pixels, grid), rules, fused=True).token_ids != seen


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_one_step_fused_takes_one_pass_per_block_after_the_prompt(models: list[Any], blocks: int) -> None:
    prompt = make_prompt(3, 1, 16)
    calls = []
    hook = models[1].model.language_model.norm.register_forward_hook(lambda *_: calls.append(1))
    try:
        got = run(models[1], prompt, DecodingRules(MASK, (IM_END,), 8, 8 * blocks), fused=True)
    finally:
        hook.remove()
    assert len(got.token_ids) == 8 * blocks
    assert got.forward_passes == blocks
    assert len(calls) == blocks + 1  # and one for the prompt


def test_prompt_shorter_than_a_block_needs_no_prompt_pass(models: list[Any]) -> None:
    prompt = make_prompt(3, 0, 3)
    rules = DecodingRules(MASK, (IM_END,), 8, 13)
    got = run(models[2], prompt, rules, fused=True)
    assert got.token_ids == reference_generate(models[2], *prompt, rules).token_ids
    assert got.forward_passes == 2


def test_a_block_boundary_inside_a_picture(models: list[Any]) -> None:
    """The prompt's tail reaches into the picture: its features, not the pad embedding, must open the first block."""
    _, pixels, grid = make_prompt(3, 1, 20)
    ids = torch.tensor([[*range(10, 22), 2, *[IMAGE_PAD] * 4, 3, 50]])
    rules = DecodingRules(MASK, (IM_END,), 16, 20)
    got = run(models[0], (ids, pixels, grid), rules, fused=True)
    assert got.token_ids == reference_generate(models[0], ids, pixels, grid, rules).token_ids


def test_mask_token_is_never_chosen(models: list[Any]) -> None:
    model = tiny_model(0, torch.float64, tied=False)
    with torch.no_grad():
        rows = torch.full((1, 4), MASK)
        model.lm_head.weight[MASK] = 10.0 * model.model(input_ids=rows).last_hidden_state[0, 0]
    prompt = make_prompt(3, 1, 16)
    with torch.no_grad():
        direct = model(input_ids=rows).logits.argmax(-1)
    assert (direct == MASK).any(), "the head must want the mask token for this test to mean something"
    got = run(model, prompt, DecodingRules(MASK, (IM_END,), 8, 32), fused=True)
    assert MASK not in got.token_ids
    assert len(got.token_ids) == 32


def test_streaming_gives_the_same_tokens_block_by_block(models: list[Any]) -> None:
    prompt = make_prompt(3, 1, 19)
    rules = DecodingRules(MASK, (IM_END,), 8, 24)
    blocks = list(decode_blocks(models[0], prepare_prompt(models[0], *prompt), rules))
    assert [len(block.token_ids) for block in blocks] == [5, 8, 8, 3]
    assert [token for block in blocks for token in block.token_ids] == run(
        models[0], prompt, rules, fused=True
    ).token_ids


def test_float32_with_either_attention_gives_the_float64_tokens(models: list[Any]) -> None:
    prompt = make_prompt(3, 1, 19)
    rules = DecodingRules(MASK, (IM_END,), 8, 24)
    wanted = run(models[0], prompt, rules, fused=True).token_ids
    ids, pixels, grid = prompt
    assert pixels is not None
    for attention in ("sdpa", "eager"):
        model = tiny_model(0, torch.float32, kv_heads=4)
        model.set_attn_implementation(attention)
        assert run(model, (ids, pixels.float(), grid), rules, fused=True).token_ids == wanted


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_length": 0},
        {"gen_length": 0},
        {"denoising_steps": 0},
        {"denoising_steps": 9},
        {"remasking_strategy": "best"},
        {"confidence_threshold": 1.5},
        {"gate": -0.1},
        {"eos_token_ids": ()},
        {"eos_token_ids": (MASK,)},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    good: dict[str, Any] = {"mask_token_id": MASK, "eos_token_ids": (IM_END,), "block_length": 8, "gen_length": 8}
    with pytest.raises(SettingsError, match=next(iter(wrong)).split("_")[0].replace("eos", "end")):
        DecodingRules(**(good | wrong))


def test_mismatched_images_and_empty_prompts_are_refused(models: list[Any]) -> None:
    ids, pixels, grid = make_prompt(3, 1, 19)
    with pytest.raises(SettingsError, match="one prompt"):
        prepare_prompt(models[0], ids.expand(2, -1), pixels, grid)
    with pytest.raises(SettingsError, match="at least one token"):
        prepare_prompt(models[0], ids[:, :0], None, None)
    with pytest.raises(SettingsError, match="features were given"):
        prepare_prompt(models[0], torch.tensor([7, 8, 9]), pixels, grid)
    with pytest.raises(SettingsError, match="no image was given"):
        prepare_prompt(models[0], ids, None, None)
    with pytest.raises(SettingsError, match="image tokens"):
        prepare_prompt(models[0], ids[:, 4:], pixels, grid)


def chosen(strategy: Any, confidence: list[float], masked: list[bool], step: int = 0, steps: int = 2) -> list[int]:
    rules = DecodingRules(MASK, (IM_END,), len(masked), 8, steps, strategy, confidence_threshold=0.8, entropy_bound=1.0)
    sure = torch.tensor([confidence])
    no_end = torch.zeros_like(sure, dtype=torch.bool)
    got = select(torch.tensor([masked]), no_end, sure, -sure.log(), RowRules.of([rules]), torch.tensor([step]))
    return [int(at) for at in got[0].nonzero().flatten()]


def test_which_tokens_each_strategy_fixes() -> None:
    assert chosen("sequential", [0.1, 0.2, 0.9, 0.9], ALL) == [0, 1]
    assert chosen("sequential", [0.1, 0.2, 0.9, 0.9], [False, True, True, True]) == [1, 2]
    assert chosen("low_confidence_static", [0.9, 0.95, 0.99, 0.2], ALL) == [1, 2]
    assert chosen("low_confidence_dynamic", [0.9, 0.95, 0.99, 0.2], ALL) == [0, 1, 2]
    assert chosen("low_confidence_dynamic", [0.8, 0.8, 0.99, 0.2], ALL) == [0, 2], "threshold is strict, quota fills up"
    assert chosen("low_confidence_dynamic", [0.9, 0.9, 0.1, 0.2], [False, False, True, True]) == [2, 3]
    assert chosen("entropy_bounded", [0.9, 0.6, 0.7, 0.2], ALL, steps=4) == [0, 1, 2]
    assert chosen("entropy_bounded", [0.1, 0.2, 0.3, 0.1], ALL, steps=4) == [2], "at least one token a step"
    for strategy in STRATEGIES:
        assert chosen(strategy, [0.1, 0.2, 0.3, 0.1], ALL, step=1) == [0, 1, 2, 3], "the last step leaves nothing"


def test_uneven_steps_give_the_first_ones_more() -> None:
    assert chosen("sequential", [0.5] * 4, ALL, step=0, steps=3) == [0, 1]
    assert chosen("sequential", [0.5] * 4, [False, False, True, True], step=1, steps=3) == [2]


def test_the_vocabulary_of_the_tests_holds_all_special_tokens() -> None:
    assert max(IM_END, IMAGE_PAD, MASK) < VOCABULARY
