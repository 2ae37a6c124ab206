"""Training: tokenizer, targets, schedules, exact resume, and that training and decoding mean the same thing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLForConditionalGeneration

from echo_model.data.labels import DENSE_LABELS
from echo_model.data.phantoms import generate_phantom
from echo_model.data.tokenizer import EOS, MASK, SPECIAL, save_tokenizer, special_ids, train_tokenizer
from echo_model.images import preprocess
from echo_model.prompt import build_prompt
from echo_model.training.corpus import Corpus, dense_labels, image_labels, model_pixels, training_report
from echo_model.training.demo_plan import Plan
from echo_model.training.loop import run_stage
from echo_model.training.optim import Muon, Optimizers, orthogonalise
from echo_model.training.rad import rad_mask
from echo_model.training.shape import (
    GRID,
    IMAGES,
    QUESTION,
    VISUAL_TOKENS,
    demo_config,
    encode_grey,
    prompt_layout,
)
from echo_model.training.text_stages import TextData, ar_loss, embed, hidden_states, rad_loss, train_text
from echo_model.training.texts import similar_rows, tokenise

HIDDEN = 32


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([training_report(1, i).text for i in range(300)], QUESTION)


def tiny_model(tokenizer: Tokenizer, seed: int = 0) -> Any:
    """The demonstration model's architecture with a few thousand weights."""
    config = demo_config(tokenizer)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = HIDDEN, 48, 2
    text.num_attention_heads, text.num_key_value_heads = 4, 2
    text.layer_types = text.layer_types[:2]
    text.rope_parameters["mrope_section"] = [2, 1, 1]
    vision.depth, vision.hidden_size, vision.num_heads, vision.intermediate_size = 1, 24, 2, 32
    vision.out_hidden_size, vision.fullatt_block_indexes = HIDDEN, [0]
    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(config).float().eval()


class FakeFeatures:
    """Visual tokens that are a function of the row."""

    def rows(self, rows: Any) -> torch.Tensor:
        draws = [torch.randn(VISUAL_TOKENS, HIDDEN, generator=torch.Generator().manual_seed(int(row))) for row in rows]
        return torch.stack(draws)


@pytest.fixture(scope="module")
def data(tokenizer: Tokenizer) -> TextData:
    reports = [tokenise(tokenizer, training_report(1, index)) for index in range(64)]
    return TextData(FakeFeatures(), reports, prompt_layout(tiny_model(tokenizer), tokenizer))  # type: ignore[arg-type]  # stands in
    # FakeFeatures has the one method of Features that training uses


@pytest.fixture
def model(tokenizer: Tokenizer) -> Any:
    return tiny_model(tokenizer)


def test_tokenizer_restores_every_text(tokenizer: Tokenizer) -> None:
    texts = [training_report(9, i).text for i in range(100)]
    for text in [*texts, 'Odd: "quotes", 1.5 cm, naïve; 右侧 ?', ""]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_tokenizer_is_small_and_has_every_special_token(tokenizer: Tokenizer) -> None:
    assert 300 < tokenizer.get_vocab_size() < 1850
    assert len(set(special_ids(tokenizer).values())) == len(SPECIAL)
    words = tokenizer.encode(training_report(1, 5).text).tokens
    assert len(words) < 110


def test_special_ids_name_what_is_missing() -> None:
    from tokenizers import models

    with pytest.raises(KeyError, match="MASK"):
        special_ids(Tokenizer(models.BPE()))


def test_saved_tokenizer_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    read = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = training_report(1, 7).text
    assert read.encode(text).ids == tokenizer.encode(text).ids
    assert read.encode(QUESTION).ids == tokenizer.encode(QUESTION).ids


def test_the_prompt_ends_on_the_block_grid(tokenizer: Tokenizer) -> None:
    assert len(build_prompt(tokenizer, [VISUAL_TOKENS])) % 8 == 0


def test_decisive_tokens_are_marked_and_boilerplate_is_not(tokenizer: Tokenizer) -> None:
    report = training_report(1, 2)
    marked = tokenise(tokenizer, report)
    words = [tokenizer.decode([int(i)]).strip() for i in marked.ids[marked.decisive]]
    plain = [tokenizer.decode([int(i)]).strip() for i in marked.ids[~marked.decisive]]
    assert {"pneumothorax", "No"} <= set(words)
    assert {"Findings", "Impression", ":", "."} <= set(plain)
    assert not {"left", "right"} & set(plain)


def test_batches_see_every_row_once_per_pool_and_have_similar_lengths() -> None:
    lengths = np.random.default_rng(0).integers(40, 100, 128)
    rows = [similar_rows(lengths, step, 8) for step in range(16)]
    assert sorted(np.concatenate(rows).tolist()) == list(range(128))
    assert np.mean([np.ptp(lengths[batch]) for batch in rows]) < 10


def test_grey_shortcut_is_the_stock_tower(model: Any) -> None:
    images = [generate_phantom(1, index).image for index in (1, 2)]
    pixels = np.concatenate([preprocess(image, IMAGES)[0] for image in images])
    with torch.no_grad():
        grid = torch.tensor([[1, GRID, GRID]] * 2)
        stock = model.model.visual(torch.from_numpy(pixels), grid_thw=grid).pooler_output
        short = encode_grey(model.model.visual, np.stack([model_pixels(image) for image in images]))
    assert torch.allclose(short.flatten(0, 1), stock, atol=1e-5)


def test_positions_are_those_of_the_model(model: Any, data: TextData) -> None:
    """A row's MRoPE: text counts up, the image's grid is 6 x 6, the response goes on behind its largest coordinate."""
    layout = data.layout
    first = int(layout.image_at[0])
    assert layout.positions[:, :first].tolist() == [list(range(first))] * 3
    image = layout.positions[:, layout.image_at]
    assert image.max(1).values.tolist() == [first, first + 5, first + 5]
    assert layout.positions[:, layout.image_at[-1] + 1].tolist() == [first + 6] * 3


def test_a_noisy_block_reads_what_decoding_would_read(model: Any, data: TextData) -> None:
    """A fully masked block in the RAD row gives the logits of decoding it behind the clean text before it."""
    layout, block = data.layout, 8
    response = torch.from_numpy(data.reports[3].ids)[:24]
    features = data.features.rows([3])
    masked = torch.full((24,), layout.mask)
    row = torch.cat([layout.prompt, response, masked])[None]
    where = layout.positions[:, layout.length : layout.length + 24]
    positions = torch.cat([layout.positions[:, : layout.length], where, where], dim=1)
    with torch.no_grad():
        states = hidden_states(
            model, embed(model, row, layout, features), positions, rad_mask(layout.length, 24, block, 1)
        )
        for number in range(3):
            end = layout.length + number * block
            plain = torch.cat([layout.prompt, response[: number * block], masked[:block]])[None]
            grid = torch.arange(end + block) // block
            mask = grid[:, None] >= grid[None, :]
            alone = hidden_states(
                model, embed(model, plain, layout, features), layout.positions[:, : end + block], mask
            )
            at = layout.length + 24 + number * block
            assert torch.allclose(states[:, at : at + block], alone[:, end:], atol=1e-5)


def test_losses_are_finite_and_start_near_chance(model: Any, data: TextData, tokenizer: Tokenizer) -> None:
    chance = np.log(tokenizer.get_vocab_size())
    with torch.no_grad():
        ar, figures = ar_loss(model, data, [0, 1, 2], 5.0)
        rad, _ = rad_loss(model, data, [0, 1, 2], 8, torch.Generator().manual_seed(0))
    assert float(ar) == pytest.approx(chance, rel=0.1)
    assert float(rad) == pytest.approx(chance, rel=0.1)
    assert 0 <= figures["hit_decisive"] <= 1


def test_batch_padding_changes_no_loss(model: Any, data: TextData) -> None:
    """The weighted mean over a batch equals that of its rows one by one."""
    rows = [0, 5, 9]
    with torch.no_grad():
        together = float(ar_loss(model, data, rows, 1.0)[0])
        parts = [(float(ar_loss(model, data, [row], 1.0)[0]), len(data.reports[row].ids) + 1) for row in rows]
    assert together == pytest.approx(sum(loss * n for loss, n in parts) / sum(n for _, n in parts), rel=1e-5)


def test_decisive_tokens_count_more_in_rad(model: Any, data: TextData) -> None:
    rows = [0, 5, 9]
    noise = [torch.Generator().manual_seed(0) for _ in range(3)]
    with torch.no_grad():
        losses = {
            weight: float(rad_loss(model, data, rows, 8, own, decisive_weight=weight)[0])
            for weight, own in zip((1.0, 2.0, 5.0), noise, strict=True)
        }
        _, figures = rad_loss(model, data, rows, 8, torch.Generator().manual_seed(0), decisive_weight=5.0)
    tail = data.layout.length % 8
    told = sum(-(-(tail + len(data.reports[row].ids) + 1) // 8) * 8 - tail for row in rows)
    strong = sum(int(data.reports[row].decisive.sum()) for row in rows)
    # a weighted mean of two groups is known everywhere from two of its weights
    at_one, at_two = losses[1.0] * told, losses[2.0] * (told + strong)
    assert losses[5.0] == pytest.approx((at_one + 4 * (at_two - at_one)) / (told + 4 * strong), rel=1e-4)
    assert losses[5.0] != pytest.approx(losses[1.0], rel=1e-5)
    assert 0 <= figures["hit_decisive"] <= 1


def test_text_training_leaves_the_tower_alone_and_learns(model: Any, data: TextData, tmp_path: Path) -> None:
    tower = {key: value.clone() for key, value in model.model.visual.state_dict().items()}
    with torch.no_grad():
        before = float(ar_loss(model, data, range(8), 1.0)[0])
    train_text(
        "ar", model, tmp_path, lambda rows, step: ar_loss(model, data, rows, 5.0), data.lengths, samples=160, rate=1e-2
    )
    with torch.no_grad():
        after = float(ar_loss(model, data, range(8), 1.0)[0])
    assert after < 0.85 * before
    assert all(torch.equal(value, tower[key]) for key, value in model.model.visual.state_dict().items())


@pytest.mark.parametrize("muon_rate", [None, 0.01])
def test_resume_is_exact(muon_rate: float | None, tokenizer: Tokenizer, data: TextData, tmp_path: Path) -> None:
    def train(folder: Path, stops: list[int | None]) -> dict[str, torch.Tensor]:
        folder.mkdir()
        for stop in stops:
            model = tiny_model(tokenizer, seed=3)

            def loss(rows: Any, step: int, model: Any = model) -> Any:
                return rad_loss(model, data, rows, 8, torch.Generator().manual_seed(step))

            rates: Any = {"rate": 1e-3, "muon_rate": muon_rate}
            train_text("rad", model, folder, loss, data.lengths, samples=48, **rates, stop_after=stop)
        return dict(model.state_dict())

    through, resumed = train(tmp_path / "a", [None]), train(tmp_path / "b", [2, 3, None])
    assert all(torch.equal(through[key], resumed[key]) for key in through)


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 1)
    optimizers = Optimizers([torch.optim.SGD(module.parameters(), lr=0.1)], 3, warmup=1)
    calls: list[int] = []

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        calls.append(step)
        return module(torch.ones(1, 2)).sum(), {}

    for _ in range(2):
        assert run_stage("x", tmp_path, module, optimizers, loss, steps=3, batch=1) == 3
    assert calls == [0, 1, 2]


def test_schedule_warms_up_then_falls_to_five_percent() -> None:
    schedule = Optimizers([], 100, warmup=10)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert schedule.rate(100) == pytest.approx(0.05)


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_orthogonalised_updates_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.35


def test_muon_lowers_a_loss() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 6))
    target = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    optimizer = Muon([weight], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (weight - target).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05 * float(target.square().mean())


@pytest.fixture
def corpus(tmp_path: Path) -> Iterator[Corpus]:
    corpus = Corpus(tmp_path / "corpus", 3, 6)
    yield corpus
    corpus.stop()


def test_corpus_holds_the_phantoms_of_its_series(corpus: Corpus) -> None:
    corpus.fill()
    images, labels, dense = corpus.batch(corpus.rows(1, 4))
    for place, index in enumerate([4, 5, 0, 1]):
        phantom = generate_phantom(3, index)
        assert np.array_equal(images[place], model_pixels(phantom.image))
        assert np.array_equal(labels[place], image_labels(phantom))
        assert np.array_equal(dense[place], dense_labels(phantom))


def test_missing_phantoms_without_a_generator_are_an_error(corpus: Corpus) -> None:
    with pytest.raises(RuntimeError, match="not running"):
        corpus.batch(corpus.rows(0, 2))


def test_a_generator_that_has_just_done_its_work_is_not_missed(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ending:
        """Writes the last phantom and ends while it is asked whether it lives."""

        def is_alive(self) -> bool:
            corpus.fill()
            return False

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_process", Ending())
        images, _, _ = corpus.batch(corpus.rows(0, 2))
    assert np.array_equal(images[1], model_pixels(generate_phantom(3, 1).image))


def test_a_corpus_of_another_size_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="another work folder"):
        Corpus(corpus.folder, 3, 7)


def test_every_label_of_the_image_is_somewhere_on_the_grid() -> None:
    for index in range(30):
        phantom = generate_phantom(12, index)
        dense = dense_labels(phantom).reshape(6, 6, len(DENSE_LABELS))
        assert np.array_equal(dense.any((0, 1)), image_labels(phantom).astype(bool))
        for name in phantom.masks:
            columns = np.nonzero(dense[:, :, DENSE_LABELS.index(name)])[1]
            if ".right" in name and not name.startswith("central_line"):
                assert columns.min() < 3
            if ".left" in name and not name.startswith("central_line"):
                assert columns.max() > 2


def test_plan_scales_and_refuses_nonsense() -> None:
    plan = Plan()
    half = plan.scaled(0.5)
    assert half.ar_samples == plan.ar_samples // 2
    assert half.train_seed == plan.train_seed
    with pytest.raises(ValueError, match="positive"):
        plan.scaled(0)


def test_special_token_names() -> None:
    assert (EOS, MASK) == ("<|im_end|>", "<|MASK|>")
