"""Which block of a growing answer has to be decoded anew, because what it says is no proper language."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from echo_model import guards
from echo_model.guard_settings import GuardSettings
from echo_model.slots import Block

_ENDS = frozenset(".!?。！？")


class Proofreader:
    """Reads one answer while it is written. Every sentence is read once; no block is sent back twice."""

    def __init__(self, tokenizer: Tokenizer, lexicon: guards.Lexicon | None, settings: GuardSettings) -> None:
        self._tokenizer = tokenizer
        self._lexicon = lexicon if settings.lexicon else None
        self._garble = settings.garble
        self._read = 0  # characters that have been judged
        self._sent_back = 0  # blocks before this one have had their second chance

    def first_bad(self, blocks: Sequence[Block]) -> int | None:
        """Index of the block in which the first new defect begins, None when all is well.

        To be called after every block with all blocks so far; does work only when a sentence has come to its end.
        """
        ids = [token for block in blocks for token in block.token_ids]
        text: str = self._tokenizer.decode(ids)
        if not blocks[-1].last and _ENDS.isdisjoint(text[self._read :]):
            return None
        found = guards.defects(
            text,
            self._lexicon,
            garble=self._garble,
            finished=blocks[-1].last,
            since=0 if blocks[-1].last else self._read,
        )
        if found:
            spans = guards.token_spans(self._tokenizer, ids)
            counts = [index for index, block in enumerate(blocks) for _ in block.token_ids]
            for defect in found:
                index = next(
                    (at for (_, end), at in zip(spans, counts, strict=True) if end > defect.start), blocks[-1].index
                )
                if index >= self._sent_back:
                    self._sent_back = len(blocks)
                    self._read = spans[counts.index(index)][0] if index in counts else 0
                    return index
        self._read = len(text) if blocks[-1].last else max(text.rfind(mark) for mark in _ENDS) + 1
        return None
