"""Byte-level BPE tokenizer trained on phantom reports, small enough for a demonstration model.

Any text can be encoded (the whole byte alphabet is there) and decoding restores it exactly. The fixed question of the
prompt is stored as two entries of the vocabulary: a model that always reads the same question need not spell it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

PAD: Final = "<|endoftext|>"
EOS: Final = "<|im_end|>"
MASK: Final = "<|MASK|>"
IMAGE: Final = "<|image_pad|>"
SPECIAL: Final = (PAD, "<|im_start|>", EOS, "<|vision_start|>", "<|vision_end|>", IMAGE, "<|video_pad|>", MASK)


def train_tokenizer(reports: Iterable[str], question: str, vocab_size: int = 1800) -> Tokenizer:
    """Train on ``reports``; ``question`` becomes two entries, split at its second full stop (or kept whole)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*reports, *["user\n", "assistant\n"] * 50], trainer)
    middle = question.find(". ", question.find(". ") + 1) + 2
    parts = [part for part in (question[:middle], question[middle:]) if part] if middle > 1 else [question]
    tokenizer.add_tokens([AddedToken(part, normalized=False) for part in parts])
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the special tokens. Raises KeyError for one that is missing."""
    ids: dict[str, int] = {}
    for token in SPECIAL:
        number = tokenizer.token_to_id(token)
        if number is not None:
            ids[token] = number
    missing = [token for token in SPECIAL if token not in ids]
    if missing:
        raise KeyError(f"the tokenizer lacks {', '.join(missing)}")
    return ids


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` in the Hugging Face layout."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": PAD,
        "mask_token": MASK,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
