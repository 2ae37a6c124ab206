"""Reports as token ids, with a mark on the tokens that the image decides, and batches of similar length."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from echo_model.data.wording import Report

#: Words that carry a finding, its side, place or absence; the first word of every statement is marked as well.
DECISIVE: Final = re.compile(
    r"\b(no|not|nothing|neither|without|free|left|right|both|bilateral|bilaterally|bibasilar|upper|lower|small|large"
    r"|minor|extensive|normal|unremarkable|enlarged|enlargement|increased|clear|sharp|intact|indistinct|blurred"
    r"|consolidations?|airspace|infiltrates?|opacit(?:y|ies)|pneumonia|nodule|nodular|coin|atelectasis|atelectatic"
    r"|edema|pneumothorax|effusions?|fluid|fracture|fractured|cardiomegaly|pacemaker|pacing|endotracheal|et"
    r"|intubated|tracheal|tube|central|jugular|subclavian|line|catheter|devices|acute|chest)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TokenisedReport:
    """Token ids of a report without EOS, and for each whether the image decides it."""

    ids: npt.NDArray[np.int64]
    decisive: npt.NDArray[np.bool_]


def tokenise(tokenizer: Tokenizer, report: Report) -> TokenisedReport:
    """Encode a report and mark its decisive tokens."""
    encoding = tokenizer.encode(report.text, add_special_tokens=False)
    marked = np.zeros(len(report.text) + 1, dtype=bool)
    for start, end in report.spans:
        for match in DECISIVE.finditer(report.text, start, end):
            marked[match.start() : match.end()] = True
        first = re.compile(r"\w+").search(report.text, start, end)
        if first:
            marked[first.start() : first.end()] = True
    decisive = np.array([bool(marked[a:b].any()) for a, b in encoding.offsets], dtype=bool)
    return TokenisedReport(np.array(encoding.ids, dtype=np.int64), decisive)


def decisive_tokens(tokenizer: Tokenizer) -> torch.Tensor:
    """Which tokens are a decisive word by themselves, whatever text they stand in: bool (V,)."""
    words = (tokenizer.decode([number]).strip() for number in range(tokenizer.get_vocab_size()))
    return torch.tensor([DECISIVE.fullmatch(word) is not None for word in words])


def similar_rows(lengths: npt.NDArray[np.int64], step: int, batch: int, pool: int = 16) -> npt.NDArray[np.int64]:
    """Rows of a step's batch: the corpus in order in pools of ``pool`` batches, each pool sorted by length.

    A function of the step alone. ``pool`` must be no multiple of 7 (the stride through a pool).
    """
    number, place = divmod(step, pool)
    rows = (np.arange(pool * batch, dtype=np.int64) + number * pool * batch) % len(lengths)
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    chunk = (place * 7) % pool
    return rows[chunk * batch : (chunk + 1) * batch]
