"""The tokenizer of a checkpoint folder: `tokenizer.json`, or built from `vocab.json` and `merges.txt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from echo_model.errors import CheckpointError
from echo_model.json_files import read_json, read_json_if_there

# How the Qwen2 family cuts text into pieces before byte-pair merging: contractions, words with at most one leading
# sign, single digits, runs of signs, line breaks, white space. A different cut gives other tokens than in training.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ADDED = "added_tokens.json"
_CONFIG = "tokenizer_config.json"
_MASK = "<|MASK|>"


def read_tokenizer(folder: Path) -> Tokenizer:
    """The checkpoint's tokenizer. Raises CheckpointError naming the file that is missing or wrong."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return _build(folder)
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises plain Exception
        raise CheckpointError(f"{file.name} cannot be used: {error}") from error


def mask_token(folder: Path, tokenizer: Tokenizer) -> int | None:
    """The tokenizer's own mask token, else the one that block-diffusion checkpoints of this family use.

    A mask token that a file names but the tokenizer lacks is refused.
    """
    for name in (_CONFIG, "special_tokens_map.json"):
        named = read_json_if_there(folder / name).get("mask_token")
        token = named.get("content") if isinstance(named, dict) else named
        if token is None:
            continue
        number = tokenizer.token_to_id(token) if isinstance(token, str) else None
        if number is None:
            raise CheckpointError(f"{name} names the mask token {token!r}, which the tokenizer does not know")
        return int(number)
    number = tokenizer.token_to_id(_MASK)
    return None if number is None else int(number)


def add_mask_token(tokenizer: Tokenizer, vocabulary: int) -> int:
    """Give the tokenizer the token ``<|MASK|>`` on a row of the embedding that it does not use; returns its number.

    Published models of this family have more rows (`vocabulary`) than tokens. Raises CheckpointError when there is none
    left.
    """
    taken = set(tokenizer.get_vocab().values())
    tokenizer.add_special_tokens([AddedToken(_MASK, normalized=False, special=True)])
    number: int = tokenizer.get_vocab()[_MASK]
    if number in taken or number >= vocabulary:
        raise CheckpointError(
            f"no mask token, and no row of the embedding is free for one: the tokenizer uses {len(taken)} of "
            f'{vocabulary} rows. Block diffusion needs a token that stands for "not decoded yet"'
        )
    return number


def _build(folder: Path) -> Tokenizer:
    """A byte-level BPE tokenizer of the Qwen2 family from its older files."""
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not vocabulary.is_file() or not merges.is_file():
        raise CheckpointError(
            "tokenizer.json is missing: the tokenizer belongs beside the weights (or vocab.json, merges.txt and "
            f"{_ADDED} or {_CONFIG}, from which it can be built)"
        )
    words = read_json(vocabulary)
    if not all(isinstance(number, int) for number in words.values()):
        raise CheckpointError("vocab.json must give each token a number")
    try:
        lines = merges.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"merges.txt is no text: {error}") from None
    pairs = []
    for line in lines:
        if not line or line.startswith("#version"):
            continue
        first, _, second = line.partition(" ")
        if not second or " " in second:
            raise CheckpointError("merges.txt must hold two tokens a line")
        pairs.append((first, second))
    try:
        tokenizer = Tokenizer(models.BPE(vocab=words, merges=pairs))
    except Exception as error:  # the Rust library raises plain Exception
        raise CheckpointError(f"vocab.json and merges.txt cannot be used together: {error}") from error
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for number, token in sorted(_added_tokens(folder).items()):
        tokenizer.add_tokens([token])
        got = tokenizer.token_to_id(token.content)
        if got != number:
            raise CheckpointError(
                f"the token {token.content!r} should be number {number} but comes out as {got}: "
                "the added tokens have gaps; save the tokenizer as tokenizer.json"
            )
    return tokenizer


def _added_tokens(folder: Path) -> dict[int, AddedToken]:
    """Tokens beyond the vocabulary by number: those of tokenizer_config.json, then those only added_tokens.json has."""
    found: dict[int, AddedToken] = {}
    described = read_json_if_there(folder / _CONFIG).get("added_tokens_decoder", {})
    plain = read_json_if_there(folder / _ADDED)
    try:
        for number, token in described.items():
            found[int(number)] = _added_token(token)
        for content, number in plain.items():
            # Nothing says which of these are special; in this family those in angle brackets and bars are.
            special = content.startswith("<|") and content.endswith("|>")
            found.setdefault(int(number), AddedToken(content, special=special, normalized=False))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the added tokens of {_CONFIG} or {_ADDED} cannot be read: {error}") from None
    if not found:
        raise CheckpointError(
            f"the special tokens are missing: beside vocab.json and merges.txt, {_ADDED} or the added_tokens_decoder "
            f"of {_CONFIG} must name them"
        )
    return found


def _added_token(token: dict[str, Any]) -> AddedToken:
    return AddedToken(
        token["content"],
        single_word=bool(token.get("single_word", False)),
        lstrip=bool(token.get("lstrip", False)),
        rstrip=bool(token.get("rstrip", False)),
        normalized=bool(token.get("normalized", False)),
        special=bool(token.get("special", False)),
    )
