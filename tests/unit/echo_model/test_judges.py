"""Perplexity under a left-to-right judge, and CheXbert's scores, on tiny random models."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from echo_model.errors import CheckpointError
from echo_model.evaluation.chexbert import CONDITIONS, CheXbert
from echo_model.evaluation.perplexity import Judge
from echo_model.images import n_image_tokens, preprocess
from echo_model.model import load_model
from echo_model.prompt import build_prompt
from unit.echo_model.tiny_checkpoint import tiny_model, write_checkpoint

TEXT = "No effusion."


def test_perplexity_is_that_of_the_stock_forward_pass(tmp_path: Path) -> None:
    loaded = load_model(write_checkpoint(tmp_path / "tiny", tiny_model(3)))
    image = np.random.default_rng(1).integers(0, 255, (56, 56), dtype=np.uint8)
    judge = Judge(loaded)
    nats = judge.add(image, TEXT)

    pixels, grid = preprocess(image, loaded.image_config)
    prompt = build_prompt(
        loaded.tokenizer,
        [n_image_tokens(grid, loaded.image_config)],
        instruction=loaded.generation_config.get("instruction"),
    )
    answer = [*loaded.tokenizer.encode(TEXT, add_special_tokens=False).ids, loaded.eos_token_ids[0]]
    ids = torch.tensor([prompt + answer])
    with torch.inference_mode():
        logits = loaded.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=torch.from_numpy(pixels),
            image_grid_thw=torch.from_numpy(np.stack([grid])),
            mm_token_type_ids=(ids == loaded.model.config.image_token_id).long(),
        ).logits[0]
    wanted = torch.nn.functional.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(answer))
    assert nats == pytest.approx(float(wanted), rel=1e-4)
    assert judge.perplexity == pytest.approx(math.exp(nats))


def test_perplexity_weighs_every_token_alike(tmp_path: Path) -> None:
    loaded = load_model(write_checkpoint(tmp_path / "tiny", tiny_model(3)))
    image = np.zeros((56, 56), dtype=np.uint8)
    judge = Judge(loaded)
    short, long = judge.add(image, "A"), judge.add(image, "Clear")  # a byte a token, and the end: 2 and 6 tokens
    assert judge.perplexity == pytest.approx(math.exp((2 * short + 6 * long) / 8), rel=1e-6)


def test_nothing_judged(tmp_path: Path) -> None:
    judge = Judge(load_model(write_checkpoint(tmp_path / "tiny", tiny_model(3))))
    with pytest.raises(ValueError, match="no text"):
        _ = judge.perplexity


@pytest.fixture
def chexbert(tmp_path: Path) -> Path:
    """Weights that say "Cardiomegaly" (class 1) of every text, "Edema" (class 3, uncertain) too, and no more."""
    words = {word: number for number, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "heart", "edema", "."])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {
        "vocab_size": 7, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "max_position_embeddings": 512, "initializer_range": 1.0,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    tensors = {f"module.bert.{key}": value for key, value in BertModel(BertConfig(**config)).state_dict().items()}
    for number, name in enumerate(CONDITIONS):
        classes = 2 if name == "No Finding" else 4
        bias = torch.zeros(classes)
        bias[{"Cardiomegaly": 1, "Edema": 3, "Pneumonia": 2}.get(name, 0)] = 1.0
        tensors[f"module.linear_heads.{number}.weight"] = torch.zeros(classes, 8)
        tensors[f"module.linear_heads.{number}.bias"] = bias
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "model.safetensors")
    return tmp_path


def test_chexbert_reads_what_its_heads_say(chexbert: Path) -> None:
    labeller = CheXbert(chexbert)
    embeddings, said = labeller.read(["heart .", "edema", "unknown words"], batch=2)
    assert embeddings.shape == (3, 8)
    assert [name for name, there in zip(CONDITIONS, said[0], strict=True) if there] == ["Cardiomegaly", "Edema"]
    alone, _ = labeller.read(["edema"])
    assert torch.allclose(embeddings[1], alone[0], atol=1e-5)  # padding beside a longer text changes nothing


def test_chexbert_scores(chexbert: Path) -> None:
    scores = CheXbert(chexbert).scores(["heart", "edema"], ["heart", "edema"])
    assert scores["semscore"] == pytest.approx(1.0, abs=1e-4)
    assert scores["chexbert_micro_f1"] == 1.0
    assert scores["chexbert_macro_f1"] == pytest.approx(2 / 14, abs=1e-4)  # a condition that nobody names counts as 0
    assert CheXbert(chexbert).scores(["heart"], ["edema"])["semscore"] < 0.9999


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_what_chexbert_lacks_is_named(chexbert: Path, name: str) -> None:
    (chexbert / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        CheXbert(chexbert)


def test_other_weights_are_refused(chexbert: Path) -> None:
    save_file({"x": torch.zeros(1)}, chexbert / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing from CheXbert's weights"):
        CheXbert(chexbert)
