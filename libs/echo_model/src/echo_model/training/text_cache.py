"""Tokenizer and tokenised reports of a run, made once.

A run that is taken up later reads exactly the texts that it began with, whatever has become of the wordings since.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from echo_model.data.tokenizer import train_tokenizer
from echo_model.training.corpus import training_report
from echo_model.training.demo_plan import Plan
from echo_model.training.shape import QUESTION
from echo_model.training.texts import TokenisedReport, tokenise


def load_texts(
    plan: Plan, work: Path, *, say: Callable[[str], None] = lambda line: None
) -> tuple[Tokenizer, list[TokenisedReport]]:
    """The tokenizer, and the normalised reports of the plan's phantoms in order."""
    words, texts = work / "tokenizer.json", work / "reports.npz"
    if not texts.exists():
        say(f"texts  writing {plan.phantoms} reports")
        reports = [training_report(plan.train_seed, index) for index in range(plan.phantoms)]
        tokenizer = train_tokenizer(
            (report.text for report in reports[: plan.tokenizer_reports]), QUESTION, plan.vocabulary
        )
        tokenised = [tokenise(tokenizer, report) for report in reports]
        tokenizer.save(str(words))
        part = texts.with_suffix(".part.npz")
        np.savez(
            part,
            ids=np.concatenate([report.ids for report in tokenised]).astype(np.int32),
            decisive=np.concatenate([report.decisive for report in tokenised]),
            lengths=np.array([len(report.ids) for report in tokenised], dtype=np.int64),
        )
        part.replace(texts)
        used = len({int(i) for report in tokenised for i in report.ids})
        say(f"texts  vocabulary of {tokenizer.get_vocab_size()} tokens, {used} of them used")
    tokenizer = Tokenizer.from_file(str(words))
    with np.load(texts) as stored:
        ids, decisive = stored["ids"].astype(np.int64), stored["decisive"]
        ends = np.cumsum(stored["lengths"])
    starts = np.concatenate([[0], ends[:-1]])
    return tokenizer, [TokenisedReport(ids[a:b], decisive[a:b]) for a, b in zip(starts, ends, strict=True)]
