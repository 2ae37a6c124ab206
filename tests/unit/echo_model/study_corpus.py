"""A small corpus of studies with two views of different sizes, and a tiny checkpoint in the stock layout to train."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from echo_model.corpora.convert import Plan, convert_corpus
from echo_model.data.phantoms import generate_phantom
from echo_model.prompt import INSTRUCTIONS, parse_sections, split_sentences

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
ROWS = 640
"""Rows of the embedding: more than there are tokens, as in published models."""
HIDDEN = 64


def short_report(text: str) -> tuple[str, str]:
    """Findings and impression of a phantom's report, shortened."""
    sections = parse_sections(text)
    findings = [sentence for sentence in split_sentences(sections.findings) if len(sentence) < 60]
    return " ".join(findings[-2:]), split_sentences(sections.impression)[0]


def write_corpus(folder: Path, studies: int = 12) -> Path:
    """Phantoms as PNG files with a table, converted by the plain CSV layout; three in four are to be learnt from.

    Every study but each third has a second, narrower picture of its own size.
    """
    raw = folder / "raw"
    raw.mkdir(parents=True)
    with (raw / "corpus.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "view", "findings", "impression", "patient", "study", "split"])
        for number in range(studies):
            phantom = generate_phantom(71, number)
            findings, impression = short_report(phantom.report)
            split = "train" if number % 4 else ("validate" if number % 8 else "test")
            views = ["frontal"] if number % 3 == 0 else ["lateral", "frontal"]
            for view in views:
                name = f"{number}-{view}.png"
                picture = Image.fromarray(phantom.image)
                if view == "lateral":
                    picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop((40, 0, 184, 224))
                picture.save(raw / name)
                table.writerow([name, view, findings, impression, f"patient {number}", f"study {number}", split])
    convert_corpus("csv", raw, folder / "corpus", Plan())
    return folder / "corpus"


@cache
def stock_tokenizer() -> Tokenizer:
    """Byte-level BPE with the special tokens of the family, none of them a mask token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [generate_phantom(71, number).report for number in range(24)]
    tokenizer.train_from_iterator([*texts, INSTRUCTIONS["en"], "user\n", "assistant\n"], trainer)
    return tokenizer


def stock_model(seed: int = 0, rows: int = ROWS) -> Any:
    """A random model of the family: two layers of width 64."""
    special = {name: SPECIALS.index(name) for name in SPECIALS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": rows,
            "hidden_size": HIDDEN,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": special["<|im_end|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 48,
            "out_hidden_size": HIDDEN,
            "fullatt_block_indexes": [1],
        },
        image_token_id=special["<|image_pad|>"],
        video_token_id=special["<|video_pad|>"],
        vision_start_token_id=special["<|vision_start|>"],
        vision_end_token_id=special["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model: Any = Qwen2_5_VLForConditionalGeneration(config)
    return model.float().eval()


def write_stock(folder: Path, model: Any | None = None) -> Path:
    """A checkpoint folder as transformers writes it; pictures are cut to 60 visual tokens at most."""
    model = model or stock_model()
    model.save_pretrained(folder)
    stock_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    pictures = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 784,
        "max_pixels": 12_845_056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    ends = [SPECIALS.index("<|im_end|>"), SPECIALS.index("<|endoftext|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "pad_token_id": ends[1]}))
    return folder


def write_toml(file: Path, **keys: Any) -> Path:
    """A training file."""
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items() if value is not None))
    return file
