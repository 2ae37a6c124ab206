"""From images to draft reports: one loaded model, many calling threads, continuous batching.

Callers prepare their own images and wait; one engine thread owns the model. It asks the `Scheduler` what to do next,
does it on the `SlotDecoder`, and hands finished blocks to the requests. The thread exists only while there is work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch

from echo_model import demo_checkpoint_path, guards
from echo_model.assembly import Draft, assemble, domain_score
from echo_model.decoding import prepare_prompts
from echo_model.domain_score import FILE_NAME as DOMAIN_FILE
from echo_model.domain_score import DomainModel
from echo_model.errors import DeadlineExceeded, EngineClosed, EngineError, ImageError, OutOfMemory, SettingsError
from echo_model.images import Picture, n_image_tokens, preprocess
from echo_model.model import LoadedModel, load_model
from echo_model.prompt import build_prompt
from echo_model.redenoise import Proofreader
from echo_model.report import EngineStats, Report, Stats, StreamedBlock
from echo_model.requests import ReportFuture, Request
from echo_model.scheduler import Layout, Scheduler, Ticket, Turn
from echo_model.settings import GenerationSettings
from echo_model.slots import SlotDecoder
from echo_model.text_model import TextModel

log = logging.getLogger(__name__)

_IDLE_SECONDS = 2.0


class ReportEngine:
    """Generates reports. Thread-safe.

    `max_slots` requests are decoded together. `prefill_budget`: prompt tokens run between two decoding steps, the
    longest that a new request holds up the others. `last_step_at` (time.monotonic seconds) moves with every piece of
    work and when an idle engine gets some, so a watchdog can tell a hung engine (`active` > 0 and no step for long)
    from an idle one.
    """

    def __init__(self, loaded: LoadedModel, *, max_slots: int = 8, prefill_budget: int = 512) -> None:
        if max_slots < 1:
            raise SettingsError(f"max_slots must be at least 1, not {max_slots}")
        if prefill_budget < 1:
            raise SettingsError(f"prefill_budget must be at least 1, not {prefill_budget}")
        self.loaded = loaded
        self.last_step_at = time.monotonic()
        domain_file = loaded.path / DOMAIN_FILE
        self.domain = DomainModel.load(domain_file) if domain_file.is_file() else None
        self.lexicon = guards.load_lexicon(loaded.path)
        self._text = TextModel(loaded.model, packed=True)
        self._decoder: SlotDecoder | None = None
        self._scheduler = Scheduler(max_slots, prefill_budget)
        self._requests: dict[Ticket, Request] = {}
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._closed = False
        self._totals = EngineStats(slots=max_slots)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path = "demo",
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        max_slots: int = 8,
        prefill_budget: int = 512,
    ) -> ReportEngine:
        """Load a checkpoint folder, or the bundled demo model for "demo". Raises CheckpointError."""
        loaded = load_model(demo_checkpoint_path() if str(path) == "demo" else path, device, dtype)
        return cls(loaded, max_slots=max_slots, prefill_budget=prefill_budget)

    # -- for callers --------------------------------------------------------------------------------------------------

    @property
    def active(self) -> int:
        """Number of requests that hold a slot or wait for one."""
        return len(self._requests)

    def stats(self) -> EngineStats:
        """Totals since the start, a snapshot."""
        with self._lock:
            return self._totals.copy()

    def submit(
        self,
        images: Picture | Sequence[Picture],
        settings: GenerationSettings | None = None,
        *,
        timeout: float | None = None,
    ) -> ReportFuture:
        """Ask for a report on the images of one study, without waiting for it.

        A checkpoint may say how many images it can read (`max_images`): those behind are left out, and the report has
        the flag `image_not_read`.
        The images are prepared in the calling thread. `timeout` in seconds counts from this call, waiting included.
        Raises ImageError, SettingsError, EngineClosed; what happens later is raised by the future's `result`.
        """
        return self._submit(images, settings or GenerationSettings(), timeout, None)

    def generate(
        self,
        images: Picture | Sequence[Picture],
        settings: GenerationSettings | None = None,
        *,
        timeout: float | None = None,
    ) -> Report:
        """Report on the images of one study.

        `timeout` in seconds counts from this call, waiting included. Raises ImageError, SettingsError,
        DeadlineExceeded, OutOfMemory, EngineClosed.
        """
        return self.submit(images, settings, timeout=timeout).result()

    def stream(
        self,
        images: Picture | Sequence[Picture],
        settings: GenerationSettings | None = None,
        *,
        timeout: float | None = None,
    ) -> Generator[StreamedBlock, None, Report]:
        """Like `generate`, one item a decoded block; the generator's return value is the report.

        An item with the index of an earlier one replaces that block and all behind it (see `GuardSettings.redenoise`).
        Closing the generator cancels the request.
        """
        arrived: SimpleQueue[StreamedBlock | None] = SimpleQueue()
        future = self._submit(images, settings or GenerationSettings(), timeout, arrived.put)
        future.add_done_callback(lambda _: arrived.put(None))
        try:
            while (block := arrived.get()) is not None:
                yield block
            return future.result()
        finally:
            future.cancel()

    def close(self) -> None:
        """Accept no more requests; those in progress end with EngineClosed. Waits for the engine thread."""
        with self._work:
            self._closed = True
            self._work.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> ReportEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(
        self,
        images: Picture | Sequence[Picture],
        settings: GenerationSettings,
        timeout: float | None,
        on_block: Callable[[StreamedBlock], None] | None,
    ) -> ReportFuture:
        begun = time.monotonic()
        rules = settings.rules(self.loaded.generation_config)
        pictures = list(images) if isinstance(images, Sequence) else [images]
        read = pictures[: self.loaded.max_images]
        ids, pixels, grids = self._inputs(read, settings)
        size = rules.block_length
        tokens = -(-(ids.shape[0] + rules.gen_length) // size) * size
        needs = Layout(size, -(-tokens // 128) * 128, rules.fused)
        ticket = Ticket(needs, ids.shape[0], None if timeout is None else begun + timeout)
        rails = settings.guards_for(self.loaded.generation_config)
        reader = Proofreader(self.loaded.tokenizer, self.lexicon, rails) if rails.redenoise else None
        request = Request(ticket, rules, ids, pixels, grids, begun, self.loaded.tokenizer, rails, reader, on_block)
        request.image_left_out = len(read) < len(pictures)
        request.future = ReportFuture(lambda: self._cancel(request))
        with self._work:
            if self._closed:
                raise EngineClosed("the engine is closed")
            if not self._requests:
                self.last_step_at = time.monotonic()
            self._requests[ticket] = request
            self._scheduler.join(ticket)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="report-engine", daemon=True)
                self._thread.start()
            self._work.notify()
        return request.future

    def _cancel(self, request: Request) -> None:
        with self._work:
            request.cancelled = True
            self._work.notify()

    def _inputs(
        self, pictures: Sequence[Picture], settings: GenerationSettings
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prompt ids (L,), patches of all images, and their grids (n, 3)."""
        loaded = self.loaded
        if not pictures:
            raise ImageError("empty", "a report needs at least one image")
        prepared = [preprocess(picture, loaded.image_config) for picture in pictures]
        counts = [n_image_tokens(grid, loaded.image_config) for _, grid in prepared]
        instruction = settings.instruction
        if instruction is None and settings.language == "en":
            instruction = loaded.generation_config.get("instruction")
        ids = build_prompt(loaded.tokenizer, counts, instruction=instruction, language=settings.language)
        pixels = np.concatenate([values for values, _ in prepared])
        return torch.tensor(ids), torch.from_numpy(pixels), torch.from_numpy(np.stack([grid for _, grid in prepared]))

    # -- the engine thread --------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        """Work until there has been none for a while."""
        while True:
            with self._work:
                if not self._requests and not self._closed:
                    self._work.wait(_IDLE_SECONDS)
                if not self._requests:
                    self._thread = None
                    return
            try:
                with self._lock:
                    self._sweep()
                    turn = self._scheduler.turn()
                if turn.idle:
                    continue
                self._do(turn)
            except Exception as error:  # a fault of ours: those who wait are told, and the thread lives
                log.exception("the engine failed")
                self._end_all(error)
            self.last_step_at = time.monotonic()

    def _end_all(self, error: Exception) -> None:
        """Every request fails; the next one finds new slots."""
        with self._lock:
            self._decoder, self._scheduler.layout = None, None
            for request in list(self._requests.values()):
                self._end(request, _explained(error))

    def _sweep(self) -> None:
        """End what is closed, cancelled or late. The lock is held."""
        now = time.monotonic()
        late = set(self._scheduler.expired(now))
        for ticket, request in list(self._requests.items()):
            if self._closed:
                self._end(request, EngineClosed("the engine is closed"))
            elif request.cancelled:
                self._end(request, None)
            elif ticket in late:
                waited = "waiting for the model" if ticket.slot is None else "writing the report"
                self._end(request, DeadlineExceeded(f"the time allowed for this report was spent {waited}"))

    def _end(self, request: Request, error: BaseException | None) -> None:
        """Take a request out and tell its caller: an error, or None for one that was cancelled. The lock is held."""
        try:
            self._leave(request)
        finally:  # also when its slot cannot be freed, or nobody would ever tell it
            self._totals.ended(error)
            request.future.fail(error)

    def _leave(self, request: Request) -> None:
        """Take a request out and free its slot, unless that was done. The lock is held."""
        slot = request.ticket.slot
        self._requests.pop(request.ticket, None)
        self._scheduler.leave(request.ticket)
        if slot is not None and request.in_slot and self._decoder is not None:
            self._decoder.release(slot)

    def _do(self, turn: Turn) -> None:
        """One turn's work. What fails for one request fails that request only."""
        if turn.layout is not None:
            self._make_slots(turn)
        for ticket in turn.admit:
            if ticket in self._requests:
                self._requests[ticket].lap("queue")
        for ticket, rows in turn.prefill:
            request = self._requests.get(ticket)
            if request is None:
                continue
            try:
                self._prefill(request, rows)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's
                with self._lock:
                    self._end(request, _explained(error))
        decoder = self._decoder
        if decoder is None or not any(ticket in self._requests for ticket in turn.decode):
            return
        try:
            finished = decoder.step()
        except Exception as error:  # noqa: BLE001 - the others go on where they can
            self._step_failed(error)
            return
        self._totals.step(sum(ticket in self._requests for ticket in turn.decode))
        with self._lock:  # others submit meanwhile
            by_slot = {ticket.slot: request for ticket, request in self._requests.items() if ticket.slot is not None}
        for slot, block in finished:
            request = by_slot[slot]
            try:
                bad = request.take(block)
                if bad is not None:
                    decoder.rewind(slot, bad, steps=decoder.block_length)
                elif block.last:
                    self._deliver(request)
            except Exception as error:  # noqa: BLE001 - a text that cannot be read must not stop the engine
                with self._lock:
                    self._end(request, _explained(error))

    def _make_slots(self, turn: Turn) -> None:
        """New slots for the turn's layout; those that cannot have them fail."""
        assert turn.layout is not None
        self._decoder = None  # its memory goes before the new one's comes
        try:
            self._decoder = SlotDecoder(
                self._text,
                slots=self._scheduler.slots,
                capacity=turn.layout.tokens,
                block_length=turn.layout.block_length,
                mask_token_id=self.loaded.mask_token_id,
                fused=turn.layout.fused,
            )
        except Exception as error:  # noqa: BLE001 - told to those who asked for it
            with self._lock:
                self._scheduler.layout = None
                for ticket in turn.admit:
                    self._end(self._requests[ticket], _explained(error))

    def _prefill(self, request: Request, rows: int) -> None:
        assert self._decoder is not None
        assert request.ticket.slot is not None
        if not request.in_slot:
            loaded = self.loaded
            pixels = request.pixels.to(loaded.device)
            (prompt,) = prepare_prompts(loaded.model, [request.ids], pixels, request.grids)
            if request.guards.domain:
                request.domain_score = domain_score(self.domain, loaded, prompt, pixels, request.grids)
            self._decoder.admit(request.ticket.slot, prompt, request.rules)
            request.in_slot = True
        self._decoder.prefill(request.ticket.slot, None if request.ticket.decoding else rows)
        if request.ticket.decoding:
            request.lap("prefill")

    def _step_failed(self, error: Exception) -> None:
        """A step for all has failed. Short of memory, the newest request goes and the others try again."""
        with self._lock:
            inside = [request for ticket, request in self._requests.items() if ticket.slot is not None]
            if isinstance(_explained(error), OutOfMemory) and len(inside) > 1:
                inside = inside[-1:]
            for request in inside:
                self._end(request, _explained(error))

    def _deliver(self, request: Request) -> None:
        """Hand a finished report over; its text is taken apart in the caller's thread."""
        request.lap("decode")
        blocks = tuple(request.blocks)
        stats = Stats(
            prompt_tokens=request.ids.shape[0],
            tokens=sum(len(block.token_ids) for block in blocks),
            blocks=len(blocks),
            forward_passes=request.forward_passes,
            gated_blocks=sum(block.gated for block in blocks),
            redenoised_blocks=request.redenoised_blocks,
            queue_seconds=request.spent["queue"],
            preprocess_seconds=request.spent["preprocess"],
            prefill_seconds=request.spent["prefill"],
            decode_seconds=request.spent["decode"],
            total_seconds=time.monotonic() - request.begun,
        )
        with self._lock:
            self._leave(request)
            self._totals.finished(stats)
        draft = Draft(blocks, request.domain_score, stats, request.guards, request.image_left_out)
        request.future.finish(lambda: assemble(self.loaded, self.lexicon, draft))


def _explained(error: Exception) -> Exception:
    """Out of memory under a name of its own, on every device; anything else as an EngineError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return OutOfMemory(f"not enough memory for this request: {error}")
    if isinstance(error, (SettingsError, ImageError)):
        return error
    told = EngineError(f"the model failed: {type(error).__name__}: {error}")
    told.__cause__ = error
    return told
