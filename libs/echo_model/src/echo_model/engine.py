"""From images to a draft report: one loaded model, many calling threads.

Every request owns its cache; a lock is held for one step (vision and prompt, or one block) at a time, so concurrent
requests take turns block by block and a request that is given up frees the model at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from echo_model import demo_checkpoint_path, guards
from echo_model.decoding import Block, BlockDecoder, Prompt, prepare_prompt
from echo_model.domain_score import FILE_NAME as DOMAIN_FILE
from echo_model.domain_score import DomainModel, describe_image
from echo_model.errors import DeadlineExceeded, EngineClosed, ImageError, SettingsError
from echo_model.images import Picture, n_image_tokens, preprocess
from echo_model.model import LoadedModel, load_model
from echo_model.prompt import SectionName, Sections, Span, build_prompt, parse_sections, sentence_spans
from echo_model.report import Report, Sentence, Stats, StreamedBlock
from echo_model.settings import GenerationSettings

LOW_CONFIDENCE_BELOW = 0.6


class ReportEngine:
    """Generates reports. Thread-safe; starts no thread of its own.

    `last_step_at` (time.monotonic seconds) moves with every step and when an idle engine gets work, so a watchdog can
    tell a hung engine (`active` > 0 and no step for long) from an idle one.
    """

    def __init__(self, loaded: LoadedModel, *, max_slots: int = 8) -> None:
        if max_slots < 1:
            raise SettingsError(f"max_slots must be at least 1, not {max_slots}")
        self.loaded = loaded
        self.last_step_at = time.monotonic()
        domain_file = loaded.path / DOMAIN_FILE
        self.domain = DomainModel.load(domain_file) if domain_file.is_file() else None
        self._slots = threading.BoundedSemaphore(max_slots)
        self._step = threading.Lock()
        self._count = threading.Lock()
        self._active = 0
        self._closed = False

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path = "demo",
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        max_slots: int = 8,
    ) -> ReportEngine:
        """Load a checkpoint folder, or the bundled demo model for "demo". Raises CheckpointError."""
        return cls(
            load_model(demo_checkpoint_path() if str(path) == "demo" else path, device, dtype), max_slots=max_slots
        )

    @property
    def active(self) -> int:
        """Number of requests that hold a slot or wait for one."""
        return self._active

    def close(self) -> None:
        """Accept no more requests; those in progress end with EngineClosed at their next step."""
        self._closed = True

    def generate(
        self,
        images: Picture | Sequence[Picture],
        settings: GenerationSettings | None = None,
        *,
        timeout: float | None = None,
    ) -> Report:
        """Report on the images of one study.

        `timeout` in seconds counts from this call, waiting included. Raises ImageError, SettingsError,
        DeadlineExceeded, EngineClosed.
        """
        blocks = self._run(images, settings or GenerationSettings(), timeout)
        while True:
            try:
                next(blocks)
            except StopIteration as end:
                report: Report = end.value
                return report

    def stream(
        self,
        images: Picture | Sequence[Picture],
        settings: GenerationSettings | None = None,
        *,
        timeout: float | None = None,
    ) -> Generator[StreamedBlock, None, Report]:
        """Like `generate`, one item a decoded block; the generator's return value is the report."""
        blocks = self._run(images, settings or GenerationSettings(), timeout)
        ids: list[int] = []
        shown = ""
        while True:
            try:
                block = next(blocks)
            except StopIteration as end:
                report: Report = end.value
                return report
            ids.extend(block.token_ids)
            # A character that is not whole yet decodes to a replacement; it is shown with the block that completes it.
            text = self.loaded.tokenizer.decode(ids).rstrip("\ufffd")
            yield StreamedBlock(block.index, text[len(shown) :], block.token_ids, block.confidences, block.ended)
            shown = text

    def _run(
        self, images: Picture | Sequence[Picture], settings: GenerationSettings, timeout: float | None
    ) -> Generator[Block, None, Report]:
        """Decode one request, giving up the model between steps."""
        clock = _Clock(timeout)
        loaded = self.loaded
        rules = settings.rules(loaded.generation_config)
        ids, pixels, grids = self._inputs(images, settings)
        clock.lap("preprocess")
        with self._count:
            if self._active == 0:
                self.last_step_at = time.monotonic()
            self._active += 1
        try:
            with self._slot(clock):
                with self._turn(clock):
                    prompt = prepare_prompt(loaded.model, ids, pixels, grids)
                    decoder = BlockDecoder(loaded.model, prompt, rules)
                    decoder.prefill()
                    self.last_step_at = time.monotonic()
                    clock.lap("prefill")
                blocks: list[Block] = []
                while not decoder.finished:
                    with self._turn(clock):
                        blocks.append(decoder.next_block())
                        self.last_step_at = time.monotonic()
                        clock.lap("decode")
                    yield blocks[-1]
        finally:
            with self._count:
                self._active -= 1
        score = self._domain_score(prompt, pixels, grids)
        return self._report(blocks, prompt.length, score, clock)

    def _inputs(
        self, images: Picture | Sequence[Picture], settings: GenerationSettings
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prompt ids (L,), patches of all images, and their grids (n, 3)."""
        loaded = self.loaded
        pictures = list(images) if isinstance(images, Sequence) else [images]
        if not pictures:
            raise ImageError("empty", "a report needs at least one image")
        prepared = [preprocess(picture, loaded.image_config) for picture in pictures]
        counts = [n_image_tokens(grid, loaded.image_config) for _, grid in prepared]
        instruction = settings.instruction
        if instruction is None and settings.language == "en":
            instruction = loaded.generation_config.get("instruction")
        ids = build_prompt(loaded.tokenizer, counts, instruction=instruction, language=settings.language)
        pixels = np.concatenate([values for values, _ in prepared])
        grids = np.stack([grid for _, grid in prepared])
        return torch.tensor(ids), torch.from_numpy(pixels).to(loaded.device), torch.from_numpy(grids)

    def _slot(self, clock: _Clock) -> _Held:
        """Wait for a free slot."""
        return _Held(self, self._slots, clock)

    def _turn(self, clock: _Clock) -> _Held:
        """Wait for this request's turn to use the model."""
        return _Held(self, self._step, clock)

    def _domain_score(self, prompt: Prompt, pixels: torch.Tensor, grids: torch.Tensor) -> float | None:
        """Score of the image that is farthest from the training images."""
        if self.domain is None or prompt.image_features is None:
            return None
        cfg = self.loaded.image_config
        sizes: list[int] = grids.prod(dim=-1).tolist()
        towers = torch.split_with_sizes(prompt.image_features, [size // cfg.merge_size**2 for size in sizes])
        return max(
            self.domain.score(describe_image(tower, values, cfg))
            for tower, values in zip(towers, torch.split_with_sizes(pixels, sizes), strict=True)
        )

    def _report(self, blocks: list[Block], prompt_tokens: int, score: float | None, clock: _Clock) -> Report:
        """Text, sections, flags and figures from the decoded blocks."""
        from echo_model.data.findings import extract_findings

        loaded = self.loaded
        ids = [token for block in blocks for token in block.token_ids]
        confidences = [value for block in blocks for value in block.confidences]
        text: str = loaded.tokenizer.decode(ids)
        sections = parse_sections(text)
        sentences = self._sentences(text, sections, ids, confidences)
        flags = list(sections.errors)
        if not blocks[-1].ended:
            flags.append(guards.TRUNCATED)
        if score is not None and score > 1.0:
            flags.append(guards.OUT_OF_DOMAIN)
        flags += [flag for sentence in sentences for flag in sentence.flags]
        stats = Stats(
            prompt_tokens=prompt_tokens,
            tokens=len(ids),
            blocks=len(blocks),
            forward_passes=sum(block.forward_passes for block in blocks),
            queue_seconds=clock.spent["queue"],
            preprocess_seconds=clock.spent["preprocess"],
            prefill_seconds=clock.spent["prefill"],
            decode_seconds=clock.spent["decode"],
            total_seconds=time.monotonic() - clock.started,
        )
        return Report(
            text=text.strip(),
            findings=sections.findings,
            impression=sections.impression,
            sentences=sentences,
            token_ids=tuple(ids),
            confidences=tuple(confidences),
            flags=tuple(dict.fromkeys(flags)),
            structured_findings=extract_findings(f"{sections.findings} {sections.impression}".strip()),
            domain_score=score,
            model_id=loaded.model_id,
            revision=loaded.revision,
            stats=stats,
        )

    def _sentences(
        self, text: str, sections: Sections, ids: list[int], confidences: list[float]
    ) -> tuple[Sentence, ...]:
        """The sentences of both sections with their confidence and flags."""
        spans = guards.token_spans(self.loaded.tokenizer, ids)
        sentences: list[Sentence] = []
        sides: tuple[tuple[SectionName, Span], ...] = (
            ("findings", sections.findings_span),
            ("impression", sections.impression_span),
        )
        for name, within in sides:
            found = sentence_spans(text, *within)
            repeated = guards.repeated_sentences([text[slice(*span)] for span in found])
            for span, again in zip(found, repeated, strict=True):
                words = text[slice(*span)]
                mean, lowest = guards.confidence_of(span, spans, confidences)
                flags = list(guards.garble_flags(words))
                if again and guards.LOOP not in flags:
                    flags.append(guards.LOOP)
                if mean < LOW_CONFIDENCE_BELOW:
                    flags.append(guards.LOW_CONFIDENCE)
                sentences.append(Sentence(words, name, mean, lowest, tuple(flags)))
        return tuple(sentences)


class _Clock:
    """Deadline and time spent by kind."""

    def __init__(self, timeout: float | None) -> None:
        self.started = self._mark = time.monotonic()
        self.deadline = None if timeout is None else self.started + timeout
        self.spent = {"queue": 0.0, "preprocess": 0.0, "prefill": 0.0, "decode": 0.0}

    def lap(self, kind: str) -> None:
        """Book the time since the last lap."""
        now = time.monotonic()
        self.spent[kind] += now - self._mark
        self._mark = now

    def remaining(self) -> float:
        """Seconds left, -1 for no limit. Raises DeadlineExceeded when none are."""
        if self.deadline is None:
            return -1.0
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the time allowed for this report is over")
        return left


class _Held:
    """A slot or the model, held for a while; the wait counts as queueing and ends at the deadline."""

    def __init__(self, engine: ReportEngine, lock: Any, clock: _Clock) -> None:
        self._engine, self._lock, self._clock = engine, lock, clock

    def __enter__(self) -> None:
        left = self._clock.remaining()
        got = self._lock.acquire() if left < 0 else self._lock.acquire(timeout=left)
        if not got:
            raise DeadlineExceeded("the time allowed for this report was spent waiting for the model")
        if self._engine._closed:
            self._lock.release()
            raise EngineClosed("the engine is closed")
        self._clock.lap("queue")

    def __exit__(self, *_: object) -> None:
        self._lock.release()
