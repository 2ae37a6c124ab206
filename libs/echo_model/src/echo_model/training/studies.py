"""A corpus as training reads it: one study at a time, with all its pictures and its report as tokens."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer

from echo_model.corpora.entry import ABOUT, INDEX, CorpusError, Entry, by_study, image_root, read_index
from echo_model.data.wording import Report
from echo_model.errors import ImageError
from echo_model.images import ImageConfig, image_grid, read_size
from echo_model.model import LoadedModel
from echo_model.prompt import INSTRUCTIONS, build_prompt, sentence_spans
from echo_model.training.shape import Layout
from echo_model.training.texts import TokenisedReport, tokenise

Grid = tuple[int, int, int]
_END: Final = "<|im_end|>"


@dataclass(frozen=True)
class Study:
    """One study: its pictures (frontal views first) with the grids they are cut to, and its report."""

    pictures: tuple[Path, ...]
    grids: tuple[Grid, ...]
    text: str
    report: TokenisedReport


@dataclass(frozen=True)
class Studies:
    """The studies of a corpus by split, in the order of its lines, and how many were left out for which reason.

    The split `test` is not read: nothing of a training may depend on it. ``digest``: of the corpus' two files.
    """

    train: list[Study]
    validate: list[Study]
    left_out: dict[str, int]
    digest: str


def read_studies(
    folder: Path, tokenizer: Tokenizer, pictures: ImageConfig, *, most_pictures: int, longest: int
) -> Studies:
    """Read a corpus. Headers of all pictures are looked at; their pixels are not.

    A study takes its first `most_pictures` pictures. Left out are those with a report of no or more than `longest`
    tokens, or one that spells out a special token, and those with a picture that is missing or cannot be used. Raises
    CorpusError for a broken line, or when nothing is left to learn from.
    """
    entries, problems = read_index(folder)
    if problems:
        raise CorpusError(f"{folder}: {problems[0]}")
    root = image_root(folder)
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    left_out: Counter[str] = Counter()
    found: dict[str, list[Study]] = {"train": [], "validate": []}
    for views in by_study((entry for entry in entries if entry.split != "test"), most_pictures):
        study = _study(root, views, tokenizer, pictures)
        if isinstance(study, str):
            left_out[study] += 1
        elif not 0 < len(study.report.ids) <= longest:
            left_out["long_text" if len(study.report.ids) else "no_text"] += 1
        elif special.intersection(study.report.ids.tolist()):
            left_out["special_token"] += 1
        else:
            found[views[0].split].append(study)
    if not found["train"]:
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "none is there"
        raise CorpusError(f"{folder}: no study of the split 'train' can be learnt from ({told})")
    digest = hashlib.sha256((folder / INDEX).read_bytes() + (folder / ABOUT).read_bytes()).hexdigest()[:16]
    return Studies(found["train"], found["validate"], dict(left_out), digest)


def _study(root: Path, views: list[Entry], tokenizer: Tokenizer, pictures: ImageConfig) -> Study | str:
    """A study, or the reason why there is none."""
    paths = tuple(root / entry.image for entry in views)
    try:
        grids = tuple(image_grid(*read_size(path, pictures.max_image_pixels), pictures) for path in paths)
    except ImageError:
        return "bad_image"
    text = views[0].report
    return Study(paths, grids, text, tokenise(tokenizer, Report(text, text, tuple(sentence_spans(text)))))


class Prompts:
    """The prompt of a study and the positions of prompt and answer. They depend on the pictures' grids alone."""

    def __init__(self, loaded: LoadedModel, room: int) -> None:
        """`room`: tokens that an answer may take."""
        self._loaded, self._room = loaded, room
        self._model: Any = loaded.model.model
        self._made: dict[tuple[Grid, ...], Layout] = {}
        self.instruction = str(loaded.generation_config.get("instruction") or INSTRUCTIONS["en"])
        end = loaded.tokenizer.token_to_id(_END)
        self.eos = end if end in loaded.eos_token_ids else loaded.eos_token_ids[0]

    def of(self, grids: tuple[Grid, ...]) -> Layout:
        """Tokens of the prompt, places of all its pictures, and positions (3, prompt + room) as decoding has them."""
        if grids not in self._made:
            self._made[grids] = self._lay_out(grids)
        return self._made[grids]

    def _lay_out(self, grids: tuple[Grid, ...]) -> Layout:
        merge = self._loaded.image_config.merge_size
        counts = [frames * rows * columns // merge**2 for frames, rows, columns in grids]
        prompt = torch.tensor(build_prompt(self._loaded.tokenizer, counts, instruction=self.instruction))
        full = torch.cat([prompt, torch.full((self._room,), self.eos)])[None]
        kinds = (full == self._loaded.model.config.image_token_id).int()
        positions, _ = self._model.get_rope_index(full, mm_token_type_ids=kinds, image_grid_thw=torch.tensor(grids))
        return Layout(
            prompt,
            kinds[0, : len(prompt)].nonzero()[:, 0],
            positions[:, 0],
            self.eos,
            self.eos,
            self._loaded.mask_token_id,
        )
