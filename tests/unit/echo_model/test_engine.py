from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from echo_model import GenerationSettings, ReportEngine, block_diffusion_generate
from echo_model.domain_score import FILE_NAME, DomainModel, fit_domain
from echo_model.errors import (
    CheckpointError,
    DeadlineExceeded,
    EngineClosed,
    EngineError,
    ImageError,
    OutOfMemory,
    SettingsError,
)
from echo_model.guard_settings import GuardSettings
from echo_model.images import preprocess
from echo_model.model import load_model
from echo_model.prompt import build_prompt
from echo_model.redenoise import Proofreader
from echo_model.slots import Block, SlotDecoder
from unit.echo_model.tiny_checkpoint import IM_END, MASK, tiny_model, write_checkpoint


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("engine") / "tiny", tiny_model(3))


@pytest.fixture
def engine(checkpoint: Path) -> ReportEngine:
    return ReportEngine.from_pretrained(checkpoint)


def film(seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (60, 50), dtype=np.uint8)


class Passes:
    """Passes of an engine's model: each waits at its end until the test lets it go; afterwards none waits."""

    def __init__(self, engine: ReportEngine) -> None:
        self.begun = threading.Semaphore(0)
        self.let = threading.Semaphore(0)
        self.free = False
        self._hook = engine.loaded.model.lm_head.register_forward_hook(self._wait)

    def _wait(self, *_: object) -> None:
        self.begun.release()
        if not self.free:
            assert self.let.acquire(timeout=120), "nobody let the pass go"

    def __enter__(self) -> Passes:
        return self

    def reached(self) -> None:
        """Wait until the engine is in its next pass."""
        assert self.begun.acquire(timeout=120), "the engine makes no pass"

    def go_on(self) -> None:
        """From now on no pass waits."""
        self.free = True
        self.let.release()

    def __exit__(self, *_: object) -> None:
        self.go_on()
        self._hook.remove()


def test_a_report_is_what_block_decoding_gives(engine: ReportEngine) -> None:
    loaded = engine.loaded
    pixels, grid = preprocess(film(), loaded.image_config)
    direct = block_diffusion_generate(
        loaded.model,
        torch.tensor(build_prompt(loaded.tokenizer, [4], instruction="Read.")),
        torch.from_numpy(pixels),
        torch.from_numpy(grid).unsqueeze(0),
        mask_token_id=MASK,
        eos_token_id=IM_END,
        block_length=4,
        gen_length=32,
    )
    report = engine.generate(film())
    assert list(report.token_ids) == direct.token_ids
    assert list(report.confidences) == pytest.approx(direct.confidences)
    assert report.stats.forward_passes == direct.forward_passes
    assert report.text == loaded.tokenizer.decode(direct.token_ids).strip()
    assert report.revision == loaded.revision
    assert {"missing_findings", "missing_impression"} <= set(report.flags), "random weights write no sections"
    assert ("truncated" in report.flags) is not direct.ended
    assert report.domain_score is None
    assert [sentence.section for sentence in report.sentences] == ["findings"] * len(report.sentences)
    assert report.stats.tokens_per_forward == len(direct.token_ids) / direct.forward_passes


def test_settings_reach_the_decoder(engine: ReportEngine) -> None:
    base = engine.generate(film())
    assert engine.generate(film(), GenerationSettings(fused=False)).token_ids == base.token_ids
    assert engine.generate(film(), GenerationSettings(gen_length=5)).token_ids == base.token_ids[:5]
    steps = engine.generate(film(), GenerationSettings(block_length=8, denoising_steps=8))
    assert steps.stats.tokens_per_forward < 2
    assert engine.generate(film(), GenerationSettings(instruction="Other.")).token_ids != base.token_ids
    assert engine.generate(film(), GenerationSettings(language="zh")).stats.prompt_tokens > base.stats.prompt_tokens
    assert engine.generate([film(), film(1)]).stats.prompt_tokens == base.stats.prompt_tokens + 6
    for wrong in (
        GenerationSettings(block_length=2, denoising_steps=3),
        GenerationSettings(gen_length=0),
        GenerationSettings(language="fr"),  # type: ignore[arg-type]  # a caller without a type checker
    ):
        with pytest.raises(SettingsError):
            engine.generate(film(), wrong)


def test_streaming_adds_up_to_the_report(engine: ReportEngine) -> None:
    stream = engine.stream(film())
    blocks = []
    while True:
        try:
            blocks.append(next(stream))
        except StopIteration as end:
            report = end.value
            break
    assert [token for block in blocks for token in block.token_ids] == list(report.token_ids)
    assert report.text.startswith("".join(block.text for block in blocks).strip())
    assert [block.index for block in blocks] == list(range(report.stats.blocks))
    assert report.token_ids == engine.generate(film()).token_ids


def test_many_threads_get_the_reports_they_would_get_alone(engine: ReportEngine) -> None:
    alone = [engine.generate(film(seed)).token_ids for seed in range(6)]
    assert len(set(alone)) > 1
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda seed: engine.generate(film(seed)).token_ids, range(6)))
    assert together == alone
    assert engine.active == 0


def test_the_deadline_ends_a_request_between_blocks_and_frees_its_slot(
    engine: ReportEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("echo_model.engine.time", SimpleNamespace(monotonic=lambda: now[0]))

    def second(*_: object) -> None:
        now[0] += 1.0

    hook = engine.loaded.model.lm_head.register_forward_hook(second)
    blocks = []
    with pytest.raises(DeadlineExceeded, match="writing"):  # noqa: PT012 - the blocks before the deadline are counted
        for block in engine.stream(film(), timeout=4.0):
            blocks.append(block)
    hook.remove()
    assert len(blocks) == 4
    assert engine.active == 0
    with pytest.raises(DeadlineExceeded):
        engine.generate(film(), timeout=0.0)
    assert engine.generate(film()).stats.blocks == 9


def wait_until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 120
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def settled(engine: ReportEngine) -> bool:
    """Whether the engine comes to rest; a request that is given up ends at the next step."""
    return wait_until(lambda: engine.active == 0)


def test_slots_bound_the_requests_in_progress(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ReportEngine.from_pretrained(checkpoint, max_slots=1)
    now = [0.0]
    monkeypatch.setattr("echo_model.engine.time", SimpleNamespace(monotonic=lambda: now[0]))
    with Passes(engine) as passes:
        stream = engine.stream(film())
        passes.let.release()
        next(stream)
        passes.reached()
        assert engine.active == 1
        waiting = engine.submit(film(), timeout=5.0)
        for _ in range(2):
            passes.reached()
            passes.let.release()
        passes.reached()  # a free slot would have been taken before this pass
        assert not waiting.done()
        now[0] = 10.0
        passes.let.release()
        with pytest.raises(DeadlineExceeded, match="waiting"):
            waiting.result(120)
        assert engine.active == 1
        stream.close()
        passes.go_on()
        assert settled(engine)
    assert engine.generate(film(), timeout=60.0).token_ids
    with pytest.raises(SettingsError, match="max_slots"):
        ReportEngine.from_pretrained(checkpoint, max_slots=0)
    with pytest.raises(SettingsError, match="prefill_budget"):
        ReportEngine.from_pretrained(checkpoint, prefill_budget=0)


def test_requests_share_passes_and_the_totals_say_so(checkpoint: Path) -> None:
    engine = ReportEngine.from_pretrained(checkpoint, max_slots=4)
    with Passes(engine) as passes:
        begun = time.monotonic()
        futures = [engine.submit(film(0))]
        passes.reached()
        longest = time.monotonic() - begun  # that the first can have waited
        futures += [engine.submit(film(seed)) for seed in range(1, 6)]
        time.sleep(longest)
        passes.go_on()
        reports = [future.result(120) for future in futures]
    totals = engine.stats()
    assert totals.reports == 6
    assert totals.ends == {}
    assert totals.tokens == sum(report.stats.tokens for report in reports)
    assert totals.rows == totals.report_passes == sum(report.stats.forward_passes for report in reports)
    assert totals.passes < totals.rows, "some passes were shared"
    assert 0.25 < totals.occupancy <= 1.0
    assert totals.gated_fraction == 0.0
    assert all(future.done() and not future.cancelled() for future in futures)
    assert reports[5].stats.queue_seconds > reports[0].stats.queue_seconds


def test_a_cancelled_request_ends_and_leaves_the_others_alone(checkpoint: Path) -> None:
    engine = ReportEngine.from_pretrained(checkpoint, max_slots=2)
    alone = engine.generate(film(1)).token_ids
    called: list[bool] = []
    with Passes(engine) as passes:
        given_up, kept, waiting = engine.submit(film(0)), engine.submit(film(1)), engine.submit(film(2))
        given_up.add_done_callback(lambda future: called.append(future.cancelled()))
        passes.reached()
        waiting.cancel()
        given_up.cancel()
        passes.go_on()
        for future in (given_up, waiting):
            with pytest.raises(CancelledError):
                future.result(120)
            assert future.cancelled()
        assert kept.result(120).token_ids == alone
    kept.cancel()
    assert not kept.cancelled(), "what has ended stays as it is"
    assert called == [True]
    assert settled(engine)
    assert engine.stats().ends == {"cancelled": 2}


def test_out_of_memory_fails_one_request_only(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ReportEngine.from_pretrained(checkpoint, max_slots=4)
    alone = [engine.generate(film(seed)).token_ids for seed in range(3)]
    step, failing = SlotDecoder.step, [3]

    def short(self: SlotDecoder) -> Any:
        if sum(row.decoding for row in self._rows.values()) == 3 and failing:
            failing.pop()
            raise torch.OutOfMemoryError("no room for 3")
        return step(self)

    monkeypatch.setattr(SlotDecoder, "step", short)
    with Passes(engine) as passes:
        futures = [engine.submit(film(seed)) for seed in range(3)]
        passes.go_on()  # in the first pass at the latest, so that all three are inside together
        ends = [future.exception(120) for future in futures]
    assert isinstance(ends[2], OutOfMemory)
    assert "no room for 3" in str(ends[2])
    assert [future.result().token_ids for future in futures[:2]] == alone[:2]
    assert settled(engine)


def test_a_prompt_without_room_fails_alone(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ReportEngine.from_pretrained(checkpoint)
    alone = engine.generate(film()).token_ids
    prefill = SlotDecoder.prefill

    def short(self: SlotDecoder, slot: int, rows: int | None = None) -> bool:
        if self._rows[slot].prompt.image_features is not None and len(self._rows[slot].prompt.image_features) == 12:
            raise MemoryError("three images are too many")
        return prefill(self, slot, rows)

    monkeypatch.setattr(SlotDecoder, "prefill", short)
    futures = [engine.submit(film()), engine.submit([film()] * 3), engine.submit(film())]
    assert isinstance(futures[1].exception(120), OutOfMemory)
    assert [futures[at].result(120).token_ids for at in (0, 2)] == [alone, alone]


def test_a_failing_model_is_told_and_the_next_request_is_served(
    engine: ReportEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = engine.generate(film()).token_ids

    def broken(self: SlotDecoder) -> Any:
        raise RuntimeError("a kernel failed")

    with monkeypatch.context() as patch:
        patch.setattr(SlotDecoder, "step", broken)
        with pytest.raises(EngineError, match="a kernel failed") as told:
            engine.generate(film())
        assert isinstance(told.value.__cause__, RuntimeError)
    assert engine.generate(film()).token_ids == alone


def test_a_fault_of_the_engine_is_told_to_all_and_the_next_request_is_served(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ReportEngine.from_pretrained(checkpoint, max_slots=2)
    with monkeypatch.context() as broken:
        broken.setattr(engine._totals, "step", lambda _: 1 / 0)
        futures = [engine.submit(film(seed)) for seed in range(3)]
        for future in futures:
            with pytest.raises(EngineError, match="ZeroDivisionError"):
                future.result(120)
    assert engine.active == 0
    assert engine.generate(film()).text
    engine.close()


@pytest.mark.parametrize("part", ["finished", "release"])
def test_a_request_whose_end_goes_wrong_is_told_so_and_the_next_one_is_served(
    engine: ReportEngine, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """When the report is counted, or when the slot of a cancelled request is freed."""

    def broken(*_: object) -> None:
        raise RuntimeError("a kernel failed")

    with monkeypatch.context() as patch, Passes(engine) as passes:
        patch.setattr(engine._totals if part == "finished" else SlotDecoder, part, broken)
        future = engine.submit(film())
        passes.reached()
        if part == "release":
            future.cancel()
        passes.go_on()
        assert isinstance(future.exception(120), EngineError if part == "finished" else CancelledError)
    assert settled(engine)
    assert engine.generate(film()).text


class Watched(dict[Any, Any]):
    """The engine's requests; nobody may walk over them while others can add some."""

    def __init__(self, lock: Any) -> None:
        super().__init__()
        self.lock = lock

    def items(self) -> Any:
        assert self.lock._is_owned()
        return super().items()


def test_requests_are_walked_over_only_with_the_lock_held(engine: ReportEngine) -> None:
    engine._requests = Watched(engine._lock)
    assert engine.generate(film()).text


def test_blocks_sent_back_are_decoded_anew_and_replaced_in_the_stream(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ReportEngine.from_pretrained(checkpoint)
    plain = engine.generate(film())
    sent: list[int] = []

    def once(self: Proofreader, blocks: Any) -> int | None:
        if len(blocks) == 4 and not sent:
            sent.append(2)
            return 2
        return None

    monkeypatch.setattr(Proofreader, "first_bad", once)
    stream = engine.stream(film(), GenerationSettings(guards=GuardSettings(gate=None)))
    seen = []
    while True:
        try:
            seen.append(next(stream))
        except StopIteration as end:
            report = end.value
            break
    assert [block.index for block in seen] == [0, 1, 2, 3, 2, *range(3, report.stats.blocks)]
    last = {block.index: block for block in seen}
    assert [token for index in sorted(last) for token in last[index].token_ids] == list(report.token_ids)
    assert report.stats.redenoised_blocks == 2
    assert report.stats.forward_passes > report.stats.blocks
    assert report.token_ids[:7] == plain.token_ids[:7], "what came before stays"
    assert engine.stats().redenoised_blocks == 2


def test_a_failing_proofreader_fails_its_request_only(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ReportEngine.from_pretrained(checkpoint)
    plain = engine.generate(film()).token_ids

    def broken(self: Proofreader, blocks: Any) -> int | None:
        raise ValueError("cannot read this")

    monkeypatch.setattr(Proofreader, "first_bad", broken)
    read = engine.submit(film(), GenerationSettings(guards=GuardSettings(gate=None)))
    unread = engine.submit(film())
    with pytest.raises(EngineError, match="cannot read this"):
        read.result(120)
    assert unread.result(120).token_ids == plain
    assert settled(engine)


def test_the_proofreader_names_the_block_where_a_defect_begins_once(engine: ReportEngine) -> None:
    tokenizer = engine.loaded.tokenizer
    reader = Proofreader(tokenizer, None, GuardSettings())

    def blocks(*texts: str) -> list[Block]:
        ids = [tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
        return [
            Block(at, tokens, (1.0,) * len(tokens), 1, 1, gated=False, ended=False, last=at == 9)
            for at, tokens in enumerate(ids)
        ]

    words = ("The heart", " is of nor", "mal size. A", " left left", " effusion", ". Then more")
    for count in range(1, 6):
        assert reader.first_bad(blocks(*words[:count])) is None, "a sentence is read when it is whole"
    assert reader.first_bad(blocks(*words)) == 3
    assert reader.first_bad(blocks(*words)) is None, "its second attempt may be as bad"
    off = Proofreader(tokenizer, None, GuardSettings(garble=False))
    assert off.first_bad(blocks(*words)) is None


def test_guards_come_from_the_request_or_else_from_the_checkpoint(tmp_path: Path) -> None:
    folder = write_checkpoint(
        tmp_path / "tiny", tiny_model(3), generation={"guards": {"gate": 1.0, "redenoise": False}}
    )
    engine = ReportEngine.from_pretrained(folder)
    gated = engine.generate(film())
    assert gated.stats.gated_fraction == 1.0, "random weights are never sure"
    off = engine.generate(film(), GenerationSettings(guards=GuardSettings.off()))
    assert off.stats.gated_blocks == 0
    assert off.stats.forward_passes == off.stats.blocks
    assert not set(off.flags) - {"missing_findings", "missing_impression", "truncated", "low_confidence"}
    for wrong in ({"gate": 2}, {"gates": 0.5}, ["gate"]):
        engine.loaded.generation_config["guards"] = wrong
        with pytest.raises(CheckpointError, match="guards"):
            engine.generate(film())


def test_images_beyond_what_a_checkpoint_reads_are_left_out_and_told(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", tiny_model(3), generation={"max_images": 1})
    engine = ReportEngine.from_pretrained(folder)
    one, two = engine.generate(film(0)), engine.generate([film(0), film(1)])
    assert two.token_ids == one.token_ids
    assert "image_not_read" in two.flags
    assert "image_not_read" not in one.flags
    for wrong in (0, True, "1"):
        (folder / "generation_config.json").write_text(json.dumps({"max_images": wrong}), encoding="utf-8")
        with pytest.raises(CheckpointError, match="max_images"):
            ReportEngine.from_pretrained(folder)


def test_requests_of_different_layouts_take_turns(checkpoint: Path) -> None:
    engine = ReportEngine.from_pretrained(checkpoint, max_slots=3)
    asked = [
        GenerationSettings(block_length=block, gen_length=length, fused=fused)
        for block, length, fused in ((4, 20, True), (8, 20, True), (4, 300, True), (4, 20, False), (16, 40, True))
    ]
    alone = [engine.generate(film(), wanted).token_ids for wanted in asked]
    futures = [engine.submit(film(), wanted) for wanted in asked * 2]
    assert [future.result(120).token_ids for future in futures] == alone * 2


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_joining_and_leaving_in_any_order_changes_no_answer(
    checkpoint: Path, expected: list[tuple[int, ...]], data: st.DataObject
) -> None:
    """Prompts of different lengths, prefill in pieces, cancelled and late requests between them."""
    slots, budget = data.draw(st.integers(1, 4)), data.draw(st.sampled_from((4, 8, 64)))
    with ReportEngine.from_pretrained(checkpoint, dtype="float64", max_slots=slots, prefill_budget=budget) as engine:
        sent: list[tuple[int, str, Any]] = []
        for _ in range(data.draw(st.integers(1, 9))):
            which = data.draw(st.integers(0, len(expected) - 1))
            fate = data.draw(st.sampled_from(("kept", "kept", "kept", "cancelled", "late")))
            future = engine.submit(FILMS[which], timeout=0.004 if fate == "late" else None)
            sent.append((which, fate, future))
            if fate == "cancelled":
                future.cancel()
            time.sleep(data.draw(st.sampled_from((0.0, 0.0, 0.003))))
        for which, fate, future in sent:
            error = future.exception(120)
            if fate == "kept" or error is None:
                assert future.result().token_ids == expected[which]
            else:
                assert isinstance(error, CancelledError if fate == "cancelled" else DeadlineExceeded)
        totals = engine.stats()
        assert engine.active == 0
        assert totals.reports + sum(totals.ends.values()) == len(sent), "every request ends exactly once"
        assert not engine._scheduler.running
        assert engine._decoder is None or not engine._decoder._rows, "no slot leaks"


FILMS = [
    [np.random.default_rng(seed + at).integers(0, 256, (60, 50)) for at in range(1 + seed % 3)] for seed in range(6)
]


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[tuple[int, ...]]:
    """What `block_diffusion_generate` says to each of FILMS, in double precision."""
    loaded = load_model(checkpoint, dtype="float64")
    answers = []
    for films in FILMS:
        prepared = [preprocess(one, loaded.image_config) for one in films]
        answer = block_diffusion_generate(
            loaded.model,
            torch.tensor(build_prompt(loaded.tokenizer, [4] * len(films), instruction="Read.")),
            torch.from_numpy(np.concatenate([pixels for pixels, _ in prepared])),
            torch.from_numpy(np.stack([grid for _, grid in prepared])),
            mask_token_id=MASK,
            eos_token_id=IM_END,
            block_length=4,
            gen_length=32,
        )
        answers.append(tuple(answer.token_ids))
    return answers


def test_a_watchdog_sees_steps(engine: ReportEngine) -> None:
    seen = [engine.last_step_at]
    hook = engine.loaded.model.lm_head.register_forward_hook(lambda *_: seen.append(engine.last_step_at))
    passes = engine.generate(film()).stats.forward_passes
    hook.remove()
    assert len(seen) == 1 + passes
    assert seen == sorted(set(seen)), "each pass begins after another step"
    assert engine.active == 0


def test_a_bad_image_fails_its_own_request_only(engine: ReportEngine) -> None:
    for bad in (np.full((9, 9), np.nan), np.zeros((0, 3), np.uint8), [], [film(), None], "film.png"):
        with pytest.raises(ImageError):
            engine.generate(bad)  # type: ignore[arg-type]  # wrong on purpose
    assert engine.active == 0
    assert engine.generate(film()).token_ids


def test_a_closed_engine_refuses(engine: ReportEngine) -> None:
    with Passes(engine) as passes:
        stream = engine.stream(film())
        passes.let.release()
        next(stream)
        closing = threading.Thread(target=engine.close)
        closing.start()
        wait_until(lambda: engine._closed)
        passes.go_on()
        closing.join()
    with pytest.raises(EngineClosed):
        for _ in stream:
            pass
    with pytest.raises(EngineClosed):
        engine.generate(film())
    assert engine.active == 0
    engine.close()


def test_images_unlike_the_training_images_are_flagged(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", tiny_model(3))
    loaded = ReportEngine.from_pretrained(folder).loaded
    ramp = np.linspace(40, 200, 56)

    def like(seed: int) -> Any:
        draw = np.random.default_rng(seed)
        return (ramp[:, None] * draw.uniform(0.8, 1.0) + draw.normal(0, 5, (56, 56))).clip(0, 255).astype(np.uint8)

    done: list[int] = []
    fit_domain(loaded, (like(seed) for seed in range(400)), done.append).save(folder / FILE_NAME)
    assert done == list(range(1, 401))
    engine = ReportEngine.from_pretrained(folder)
    inside = engine.generate(like(1000))
    assert "out_of_domain" not in inside.flags
    assert inside.domain_score is not None
    assert inside.domain_score < 1.0
    for outside in (film(), np.zeros((56, 56), np.uint8), 255 - like(1000)):
        report = engine.generate(outside)
        assert "out_of_domain" in report.flags
        assert report.domain_score is not None
        assert report.domain_score > 1.0
    mixed = engine.generate([like(1), film()])
    assert "out_of_domain" in mixed.flags, "one strange view makes the study strange"
    (folder / FILE_NAME).write_bytes(b"no")
    with pytest.raises(CheckpointError, match=FILE_NAME):
        ReportEngine.from_pretrained(folder)
    with pytest.raises(ValueError, match="too few"):
        fit_domain(loaded, [like(1)])
    with pytest.raises(CheckpointError):
        DomainModel.load(folder / "model.safetensors")


def test_importing_the_package_is_light() -> None:
    """No torch, no second thread, no socket."""
    code = (
        "import socket, sys, threading\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "import echo_model\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "assert threading.active_count() == 1\n"
        "assert echo_model.GenerationSettings().block_length is None\n"
        "assert 'ReportEngine' in echo_model.__all__ and not hasattr(echo_model, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
