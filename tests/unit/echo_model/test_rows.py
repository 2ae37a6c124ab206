"""Rows of studies with different prompts: the same as each alone by stock modules, as DCD and RAD on one prompt."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from echo_model.errors import CheckpointError
from echo_model.model import LoadedModel, load_model
from echo_model.training.attention import TILE, tiled_mask, wants_tiles
from echo_model.training.dcd import Distillation, distil_loss
from echo_model.training.packing import pack_rad, packed_states
from echo_model.training.rad import draw_noise, lay_out
from echo_model.training.rollout import Trajectories, roll_out, usable
from echo_model.training.row_losses import Counts, distillation_loss
from echo_model.training.row_model import Pictures, RowModel, together
from echo_model.training.rows import autoregressive_row, distillation_row, rad_row
from echo_model.training.shape import Layout
from echo_model.training.studies import Grid, Prompts
from echo_model.training.study_losses import Order
from echo_model.training.study_rollout import roll_out_studies
from echo_model.training.texts import TokenisedReport
from unit.echo_model.small_training import BLOCK, small_data, small_model
from unit.echo_model.study_corpus import stock_model, stock_tokenizer, write_stock

ONE: tuple[Grid, ...] = ((1, 4, 4),)
TWO: tuple[Grid, ...] = ((1, 4, 6), (1, 6, 2))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    model = stock_model(3)
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
    return load_model(write_stock(tmp_path_factory.mktemp("stock") / "init", model), add_mask=True)


@pytest.fixture(scope="module")
def prompts(loaded: LoadedModel) -> Prompts:
    return Prompts(loaded, 200)


@cache
def report(seed: int, length: int) -> TokenisedReport:
    ids = torch.randint(20, 500, (length,), generator=torch.Generator().manual_seed(seed)).numpy()
    return TokenisedReport(ids, ids % 3 == 0)


def patches(grids: tuple[Grid, ...], seed: int = 0) -> Pictures:
    count = sum(rows * columns for _, rows, columns in grids)
    return Pictures(torch.randn(count, 1176, generator=torch.Generator().manual_seed(seed)), torch.tensor(grids))


SAMPLES = ((ONE, 11, 0), (TWO, 17, 1))


def samples(prompts: Prompts) -> list[tuple[Layout, TokenisedReport]]:
    return [(prompts.of(grids), report(seed, length)) for grids, length, seed in SAMPLES]


def pictures() -> list[Pictures]:
    return [patches(grids, seed) for grids, _, seed in SAMPLES]


@torch.no_grad()
def stock_states(model: Any, ids: torch.Tensor, seen: Pictures, mask: torch.Tensor | None) -> torch.Tensor:
    """Logits (L, V) of the stock model's own forward pass; `mask` bool (L, L)."""
    kinds = (ids == model.config.image_token_id).int()[None]
    positions, _ = model.model.get_rope_index(ids[None], mm_token_type_ids=kinds, image_grid_thw=seen.grids)
    attention = None if mask is None else {"full_attention": mask[None, None]}
    out = model(
        input_ids=ids[None],
        pixel_values=seen.patches,
        image_grid_thw=seen.grids,
        position_ids=positions,
        attention_mask=attention,
        use_cache=False,
    )
    logits: torch.Tensor = out.logits[0]
    return logits


def test_an_autoregressive_row_is_what_the_stock_model_says_of_each_study(
    loaded: LoadedModel, prompts: Prompts
) -> None:
    row = autoregressive_row(samples(prompts), 5.0)
    with torch.no_grad():
        logits = RowModel(loaded.model)(row, together(pictures()))
    wanted, truth = [], []
    for (layout, text), seen in zip(samples(prompts), pictures(), strict=True):
        ids = torch.cat([layout.prompt, torch.from_numpy(text.ids)])
        wanted.append(stock_states(stock_of(loaded), ids, seen, None)[layout.length - 1 :])
        truth += [*text.ids.tolist(), layout.eos]
    torch.testing.assert_close(logits, torch.cat(wanted), rtol=1e-4, atol=1e-4)
    assert row.truth.tolist() == truth
    assert row.weights[:11].tolist() == [5.0 if decisive else 1.0 for decisive in report(0, 11).decisive]


def stock_of(loaded: LoadedModel) -> Any:
    """The same weights with the stock attention."""
    model = stock_model()
    model.load_state_dict(loaded.model.state_dict())
    return model


@pytest.mark.parametrize("block", [4, 64])
def test_a_noisy_block_sees_the_prompt_and_the_clean_blocks_before(
    loaded: LoadedModel, prompts: Prompts, block: int
) -> None:
    """Also when the block reaches back into the pictures (64)."""
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    row = rad_row(samples(prompts), block, generators)
    with torch.no_grad():
        logits = RowModel(loaded.model)(row, together(pictures()))
    wanted, stock = [], stock_of(loaded)
    for (layout, text), seen, seed in zip(samples(prompts), pictures(), (5, 6), strict=True):
        prefix = layout.length // block * block
        region = lay_out(layout.prompt[prefix:], [torch.from_numpy(text.ids)], block, layout.eos)
        noise = draw_noise(region.open, block, torch.Generator().manual_seed(seed))[:, 0]
        for masked in noise:
            for first in range(0, len(masked), block):
                here = slice(first, first + block)
                ids = torch.cat(
                    [
                        layout.prompt[:prefix],
                        region.ids[0, :first],
                        region.ids[0, here].masked_fill(masked[here], layout.mask),
                    ]
                )
                number = torch.arange(len(ids)) // block
                states = stock_states(stock, ids, seen, number[None] <= number[:, None])
                wanted.append(states[prefix + first :][masked[here]])
    torch.testing.assert_close(logits, torch.cat(wanted), rtol=1e-4, atol=1e-4)


def test_decisive_tokens_of_a_rad_row_count_more(prompts: Prompts) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    row = rad_row(samples(prompts), BLOCK, generators, 3.0)
    decisive = {int(i) for _, text in samples(prompts) for i, yes in zip(text.ids, text.decisive, strict=True) if yes}
    assert row.weights.tolist() == [3.0 if int(token) in decisive else 1.0 for token in row.truth]
    assert 0 < int((row.weights == 3).sum()) == sum(int(text.decisive.sum()) for _, text in samples(prompts))


def test_a_rad_row_of_one_prompt_is_the_packed_row_of_the_phantoms() -> None:
    model, data = small_model(1), small_data()
    generator = torch.Generator().manual_seed(4)
    packed = pack_rad(model, data, [2], BLOCK, generator)
    row = rad_row([(data.layout, data.reports[2])], BLOCK, [torch.Generator().manual_seed(4)])
    with torch.no_grad():
        wanted = model.lm_head(packed_states(model, packed)[packed.masked])
        logits = RowModel(model)(row, Pictures(features=data.features.rows([2])[0]))
    assert row.truth.tolist() == packed.truth[packed.masked].tolist()
    torch.testing.assert_close(logits, wanted)


@contextmanager
def uncompiled() -> Iterator[None]:
    """FlexAttention says once a process that it was not compiled, which is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        yield


def test_flex_attention_over_tiles_is_attention_under_the_dense_mask(prompts: Prompts) -> None:
    long = [(prompts.of(grids), report(seed, 60)) for grids, _, seed in SAMPLES]
    whole = rad_row(long, 8, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    row = whole.padded(TILE)
    length = len(row.ids)
    assert len(whole.ids) < length
    assert length // TILE > 2
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, 4, length, 16, generator=generator)
    key, value = (torch.randn(1, 2, length, 16, generator=generator) for _ in range(2))
    mask = tiled_mask(row.index, torch.device("cpu"))
    with uncompiled():
        tiled = flex_attention(query, key, value, block_mask=mask, enable_gqa=True)
    dense = scaled_dot_product_attention(query, key, value, attn_mask=row.index.dense(), enable_gqa=True)
    torch.testing.assert_close(tiled, dense, rtol=1e-4, atol=1e-5)
    assert mask.full_kv_num_blocks is not None
    looked_at = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    assert looked_at < (length // TILE) ** 2  # samples do not look at each other


def test_the_model_gives_the_same_through_tiles(
    loaded: LoadedModel, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = autoregressive_row(samples(prompts), 1.0)
    model = RowModel(loaded.model)
    with torch.no_grad():
        dense = model(row, together(pictures()))
        for module in ("attention", "row_model"):
            monkeypatch.setattr(f"echo_model.training.{module}.wants_tiles", lambda length, device: True)
        with uncompiled():
            tiled = model(row, together(pictures()))
    torch.testing.assert_close(tiled, dense, rtol=1e-4, atol=1e-4)


def test_a_row_too_long_for_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="too long to train on a CPU"):
        wants_tiles(1_000_000, torch.device("cpu"))


def test_distillation_of_a_row_is_that_of_a_batch_with_one_prompt() -> None:
    model, data = small_model(5), small_data()
    features = data.features.rows([0, 1, 2])
    first = roll_out(small_model(2), data.layout, features, BLOCK, tau=0.05, top_k=6, max_tokens=32)
    layout = drawn(data.layout, first)
    paths = roll_out(small_model(2), layout, features, BLOCK, tau=0.05, top_k=6, max_tokens=32)
    use = usable(paths)
    assert int(use.sum()) > 1
    paths, features = paths.chosen(use), features[use]
    for options in (Distillation(ce_weight=0.5), Distillation(weighted=False, reverse=True)):
        with torch.no_grad():
            wanted, _ = distil_loss(model, layout, features, paths, BLOCK, options)
            each = [paths.chosen(torch.arange(len(features)) == number) for number in range(len(features))]
            row = distillation_row([(layout, path) for path in each], BLOCK)
            logits = RowModel(model)(row, Pictures(features=features.flatten(0, 1)))
            counts = Counts.of(paths, layout.eos, weighted=options.weighted)
            loss, _ = distillation_loss(logits, row, each, layout.eos, layout.mask, options, counts)
        assert float(loss) == pytest.approx(float(wanted), rel=1e-4)


def drawn(layout: Layout, paths: Trajectories) -> Layout:
    """The layout with the token that was chosen most often as the end: random weights seldom choose the true one."""
    return replace(layout, eos=int(paths.ids[paths.step > 0].mode().values))


@pytest.mark.parametrize(("block", "tau", "canonical"), [(4, 0.05, None), (16, 2.0, None), (8, 0.0, 0.6)])
def test_studies_decoded_together_are_decoded_as_each_alone(
    loaded: LoadedModel, prompts: Prompts, block: int, tau: float, canonical: float | None
) -> None:
    """Prompts of different lengths, which end at different places of a block."""
    model = RowModel(loaded.model)
    layouts = [prompts.of(grids) for grids, _, _ in SAMPLES]
    assert len({layout.length % block for layout in layouts}) == 2
    with torch.no_grad():
        features = [model.see(one) for one in pictures()]
        free = roll_out_studies(model.model, layouts, features, block, tau=tau, top_k=5, max_tokens=24)
        layouts = [drawn(layout, free) for layout in layouts]
        paths = roll_out_studies(
            model.model, layouts, features, block, tau=tau, top_k=5, max_tokens=24, canonical=canonical
        )
        for number, (layout, seen) in enumerate(zip(layouts, features, strict=True)):
            alone = roll_out(
                model.model, layout, seen[None], block, tau=tau, top_k=5, max_tokens=24, canonical=canonical
            )
            width = int(alone.open[0].nonzero().max()) + 1
            assert bool(paths.ended[number]) == bool(alone.ended[0])
            assert paths.ids[number, :width].tolist() == alone.ids[0, :width].tolist()
            assert paths.step[number, :width].tolist() == alone.step[0, :width].tolist()
            assert paths.open[number, :width].tolist() == alone.open[0, :width].tolist()
            told = alone.step[0, :width] > 0
            assert paths.top_ids[number, :width][told].tolist() == alone.top_ids[0, :width][told].tolist()
            torch.testing.assert_close(
                paths.top_log[number, :width][told], alone.top_log[0, :width][told], rtol=1e-4, atol=1e-4
            )


def test_every_study_comes_once_a_round_and_rounds_differ() -> None:
    order = Order(count=10, batch=4, seed=3)
    seen = [int(number) for step in range(5) for number in order.batch_of(step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert seen[:10] != [int(number) for step in range(5) for number in Order(10, 4, 4).batch_of(step)][:10]


def test_a_prompt_without_room_for_a_mask_token_is_refused(tmp_path: Path) -> None:
    rows = stock_tokenizer().get_vocab_size()
    folder = write_stock(tmp_path / "full", stock_model(rows=rows))
    with pytest.raises(CheckpointError, match="no row of the embedding is free"):
        load_model(folder, add_mask=True)
    with pytest.raises(CheckpointError, match="an autoregressive checkpoint has none"):
        load_model(folder)


def test_a_new_mask_token_gets_a_free_row(loaded: LoadedModel) -> None:
    assert loaded.mask_added
    assert loaded.mask_token_id == loaded.tokenizer.token_to_id("<|MASK|>") == stock_tokenizer().get_vocab_size()
