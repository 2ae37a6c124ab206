"""A tokenizer from the older files cuts text exactly as the tokenizer of transformers does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from transformers import Qwen2Tokenizer

from echo_model.errors import CheckpointError
from echo_model.tokenizer_files import read_tokenizer

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|MASK|>"]
MERGES = ["l u", "lu n", "lun g", "Ġ lung", "lung s", "Ġ e", "f f", "Ġe ff", "1 2", "å ı", "' t", "c l", "Ċ Ċ"]
VOCABULARY = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(pair.replace(" ", "") for pair in MERGES)]


def write(folder: Path, **instead: Any) -> Path:
    """The older files; a value replaces the content of the file of that name, None leaves it out."""
    numbers = {token: number for number, token in enumerate(VOCABULARY)}
    added = {token: number for number, token in enumerate(SPECIALS, len(VOCABULARY))}
    files = {"vocab": numbers, "merges": "\n".join(["#version: 0.2", *MERGES, ""]), "added_tokens": added} | instead
    for name, content in files.items():
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / f"{name}{'.txt' if name == 'merges' else '.json'}").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return read_tokenizer(write(tmp_path_factory.mktemp("tokenizer")))


PAIRS: Any = [tuple(pair.split(" ")) for pair in MERGES]  # declared as strings there, read as pairs
REFERENCE = Qwen2Tokenizer(vocab={token: number for number, token in enumerate(VOCABULARY)}, merges=PAIRS)
REFERENCE.add_special_tokens({"additional_special_tokens": SPECIALS})


@settings(max_examples=50, deadline=None)
@given(
    text=st.lists(
        st.one_of(
            st.text(max_size=12),
            st.sampled_from(["The lungs", " clear.", "isn't", "\n\n", "  ", "1.5 cm", "双肺清晰。", "é", "e\u0301"]),
            st.sampled_from(SPECIALS),
        ),
        max_size=8,
    ).map("".join)
)
def test_texts_are_cut_as_by_transformers(built: Tokenizer, text: str) -> None:
    assert built.encode(text).ids == REFERENCE.encode(text)


def test_special_tokens_are_special(built: Tokenizer) -> None:
    ids = built.encode("<|im_start|>lungs<|im_end|>").ids
    assert ids == [len(VOCABULARY) + 1, VOCABULARY.index("lungs"), len(VOCABULARY) + 2]
    assert built.decode(ids) == "lungs"


def test_added_tokens_may_be_described_in_the_configuration(tmp_path: Path) -> None:
    first = len(VOCABULARY)
    described = {
        str(first): {"content": "<|im_end|>", "special": True, "lstrip": False, "normalized": False},
        str(first + 1): {"content": "<tool>", "special": False},
    }
    write(tmp_path, added_tokens=None, tokenizer_config={"added_tokens_decoder": described})
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("a<tool><|im_end|>").ids) == "a<tool>"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"vocab": None}, r"tokenizer\.json is missing"),
        ({"merges": None}, r"tokenizer\.json is missing"),
        ({"added_tokens": None}, "the special tokens are missing"),
        ({"added_tokens": {"<|im_end|>": 5000}}, "should be number 5000 but comes out as"),
        ({"added_tokens": {"<|im_end|>": "x"}}, r"added_tokens\.json cannot be read"),
        ({"tokenizer_config": {"added_tokens_decoder": {"9": {}}}}, "cannot be read"),
        ({"vocab": {"a": "b"}}, r"vocab\.json must give each token a number"),
        ({"merges": "a\n"}, r"merges\.txt must hold two tokens a line"),
        ({"merges": "qq zz\n"}, r"vocab\.json and merges\.txt cannot be used together"),
    ],
)
def test_files_that_make_no_tokenizer_are_named(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    write(tmp_path, **files)
    with pytest.raises(CheckpointError, match=message):
        read_tokenizer(tmp_path)
