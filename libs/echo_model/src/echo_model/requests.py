"""One request from its submission to its end: what the caller holds, and what the engine keeps of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer

from echo_model.guard_settings import GuardSettings
from echo_model.redenoise import Proofreader
from echo_model.report import Report, StreamedBlock
from echo_model.scheduler import Ticket
from echo_model.slots import Block
from echo_model.unmasking import DecodingRules


class ReportFuture:
    """A report to come. Ends exactly once: with a report, an error, or cancelled."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._future: Future[Callable[[], Report]] = Future()
        self._cancel = cancel
        self._report: Report | None = None

    def result(self, timeout: float | None = None) -> Report:
        """Wait for the report, up to `timeout` seconds.

        Raises DeadlineExceeded, OutOfMemory, EngineError or EngineClosed when the request ended so,
        `concurrent.futures.CancelledError` when it was cancelled, TimeoutError when it has not ended yet.
        """
        build = self._future.result(timeout)
        if self._report is None:  # two threads may both build it; they build the same
            self._report = build()
        return self._report

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """How the request failed, None for a report; waits like `result`."""
        return self._future.exception(timeout)

    def done(self) -> bool:
        """Whether the request has ended, however."""
        return self._future.done()

    def cancelled(self) -> bool:
        """Whether it ended by `cancel`."""
        return self._future.done() and isinstance(self._future.exception(), CancelledError)

    def cancel(self) -> None:
        """Give the request up, waiting or running. It ends soon after; a finished one stays as it is."""
        if not self.done():
            self._cancel()

    def add_done_callback(self, callback: Callable[[ReportFuture], None]) -> None:
        """Call back when the request has ended, from the engine's thread (or at once); must be quick."""
        self._future.add_done_callback(lambda _: callback(self))

    def finish(self, build: Callable[[], Report]) -> None:
        """For the engine: the report is decoded."""
        self._future.set_result(build)

    def fail(self, error: BaseException | None) -> None:
        """For the engine: ended by an error, or cancelled (None)."""
        self._future.set_exception(CancelledError("the request was cancelled") if error is None else error)


@dataclass(eq=False)
class Request:
    """What the engine knows of a request."""

    ticket: Ticket
    rules: DecodingRules
    ids: torch.Tensor
    pixels: torch.Tensor
    grids: torch.Tensor
    begun: float
    tokenizer: Tokenizer
    guards: GuardSettings
    proofreader: Proofreader | None
    on_block: Callable[[StreamedBlock], None] | None
    future: ReportFuture = field(init=False)
    image_left_out: bool = False
    cancelled: bool = False
    in_slot: bool = False
    domain_score: float | None = None
    blocks: list[Block] = field(default_factory=list)
    forward_passes: int = 0
    redenoised_blocks: int = 0
    spent: dict[str, float] = field(default_factory=dict)
    _mark: float = field(init=False)

    def __post_init__(self) -> None:
        self._mark = time.monotonic()
        self.spent["preprocess"] = self._mark - self.begun

    def lap(self, kind: str) -> None:
        """Book the time since the last lap."""
        now = time.monotonic()
        self.spent[kind] = self.spent.get(kind, 0.0) + now - self._mark
        self._mark = now

    def take(self, block: Block) -> int | None:
        """A block is finished; one with a known index replaces that block and all behind it.

        Returns the index of the block from which on to decode anew, if any.
        """
        del self.blocks[block.index :]
        shown = self._text()
        self.blocks.append(block)
        self.forward_passes += block.forward_passes
        if self.on_block is not None:
            text = self._text()
            self.on_block(
                StreamedBlock(block.index, text[len(shown) :], block.token_ids, block.confidences, block.ended)
            )

        bad = None if self.proofreader is None else self.proofreader.first_bad(self.blocks)
        if bad is not None:
            self.redenoised_blocks += len(self.blocks) - bad
        return bad

    def _text(self) -> str:
        """What has been decoded. A character that is not whole yet is shown with the block that completes it."""
        if self.on_block is None:
            return ""
        ids = [token for block in self.blocks for token in block.token_ids]
        text: str = self.tokenizer.decode(ids)
        return text.rstrip("\ufffd")
