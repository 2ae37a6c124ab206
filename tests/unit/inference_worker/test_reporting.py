"""The worker's use case with a model that the test controls, and the limits around it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echo_model.guards import flags
from inference_worker.domain import NOTICES, Draft, DraftFinding, DraftSentence, Fault, notices
from inference_worker.gate import Gate
from inference_worker.handlers import Reporter
from inference_worker.ports import GreyImage
from inference_worker.settings import DRAIN_MARGIN_S, Settings
from inference_worker.watchdog import EXIT_HUNG, Watchdog
from pipeline.bus import Message
from pipeline.clock import ManualClock
from pipeline.errors import BusUnavailable
from pipeline.events import REPORT_FAILED, REPORT_GENERATED, REPORT_REQUESTED, REPORT_STARTED, Event, study_event
from pipeline.store import LocalObjectStore
from pipeline.taskqueue import celery_config

REF = "manifests/job-1.json"
DRAFT = Draft(
    text="Findings: Small left effusion. Impression: Effusion.",
    findings="Small left effusion.",
    impression="Effusion.",
    sentences=(
        DraftSentence("findings", "Small left effusion.", 0.8, ("low_confidence",)),
        DraftSentence("impression", "Effusion.", 1.2, ()),
    ),
    structured_findings=(DraftFinding("pleural_effusion", "present", "left", "Small left effusion"),),
    flags=("out_of_domain", "low_confidence"),
    out_of_domain_score=3.5,
    tokens=16,
    forward_passes=4,
    tokens_per_forward=4.0,
)


class WatchedGate(Gate):
    """Notes who asked to be alone."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bool] = []

    def hold(self, *, alone: bool) -> contextlib.AbstractContextManager[None]:
        self.asked.append(alone)
        return super().hold(alone=alone)


class World:
    """Everything around the reporter; each part can be made to fail."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.store = LocalObjectStore(folder)
        self.published: list[Event] = []
        self.bus_away_for = 0
        self.model: Callable[[Sequence[GreyImage], float], Draft] = lambda images, timeout: DRAFT
        self.frontal = True
        self.decode_s = 0.0
        self.decode_timeouts: list[float | None] = []
        self.ended: list[int] = []
        self.gate = WatchedGate()
        self.watchdog = Watchdog(180, lambda: 0.0, self.clock, self.ended.append)
        self.reporter = Reporter(
            self.store, self, self, lambda image: self.frontal, self, self.clock, self.gate, self.watchdog,
            worker="w", deadline_s=120, max_object_bytes=2**20, wait=self.clock.advance,
        )  # fmt: skip

    model_id, model_version = "m", "1"

    def publish(self, messages: Sequence[Message]) -> None:
        if self.bus_away_for > 0:
            self.bus_away_for -= 1
            raise BusUnavailable("away")
        self.published += [Event.from_bytes(message.value) for message in messages]

    def close(self) -> None:
        pass

    def decode(self, file: Any, timeout_s: float | None = None) -> GreyImage:
        self.decode_timeouts.append(timeout_s)
        self.clock.advance(self.decode_s)
        if file.read() == b"bad":
            raise Fault("pixels_undecodable")
        return np.zeros((4, 4), np.uint8)

    def generate(self, images: Sequence[GreyImage], timeout_s: float) -> Draft:
        return self.model(images, timeout_s)

    def stalled_s(self) -> float:
        return 0.0

    def task(self, content: bytes = b"image", request: dict[str, Any] | None = None, **image: Any) -> Event:
        self.store.put_bytes(content, "objects/a")
        reference = {
            "sop_instance_uid": "1.2",
            "series_instance_uid": "1.3",
            "object_ref": "objects/a",
            "sha256": hashlib.sha256(content).hexdigest(),
            "view_position": "PA",
        }
        data = {
            "job_id": "6f0d2c39-0f0a-5a58-9a58-7f6c1de7a001",
            "attempt": 1,
            "priority": "routine",
            "deadline_at": "2026-01-01T00:10:00Z",
            "images": [reference | image],
            **(request or {}),
        }
        manifest = study_event(REPORT_REQUESTED, "/dispatcher", "1.2.3", 1, self.clock.now(), data)
        self.store.put_bytes(manifest.to_bytes(), REF)
        return manifest

    def run(self, *, redelivered: bool = False) -> str:
        return self.reporter.report(REF, redelivered=redelivered)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_draft_is_told_with_all_that_belongs_to_it(world: World) -> None:
    manifest = world.task()
    world.clock.advance(2)
    assert world.run() == "generated"
    started, generated = world.published
    assert (started.type, generated.type) == (REPORT_STARTED, REPORT_GENERATED)
    assert generated.correlationid == manifest.correlationid
    assert generated.traceparent.split("-")[1] == manifest.traceparent.split("-")[1]
    data = generated.data
    assert data["timings"]["queue_s"] == 2.0
    assert data["notices"] == [NOTICES["out_of_domain"], NOTICES["low_confidence"]]
    assert [sentence["confidence"] for sentence in data["sentences"]] == [0.8, 1.0]
    (finding,) = data["structured_findings"]
    assert (finding["laterality"], finding["confidence"]) == ("left", 0.8)


@pytest.mark.parametrize("doubt", ["body_part_unknown", "view_unknown", "conflicting_body_part"])
def test_where_the_headers_were_in_doubt_the_picture_has_to_look_right(world: World, doubt: str) -> None:
    world.frontal = False
    world.task(request={"assumed": [doubt]})
    assert world.run() == "failed"
    failed = world.published[-1].data
    assert (failed["error_code"], failed["retryable"]) == ("not_a_frontal_chest", False)
    world.task(request={"assumed": ["age_unknown"]})
    assert world.run() == "generated", "the picture is not asked about anything else"
    world.task(request={"assumed": []})
    assert world.run() == "generated", "nor where a person or the headers have said what it is"
    world.frontal = True
    world.task(request={"assumed": [doubt]})
    assert world.run() == "generated"


def test_a_job_pinned_to_another_model_version_is_not_done_by_this_one(world: World) -> None:
    world.task(request={"model_version": "2"})
    assert world.run() == "failed"
    (failed,) = world.published  # it never started
    assert failed.type == REPORT_FAILED
    assert (failed.data["error_code"], failed.data["retryable"]) == ("wrong_model_version", True)
    for version in ("1", "default"):
        world.task(request={"model_version": version})
        assert world.run() == "generated"


def test_a_withdrawn_task_does_nothing(world: World) -> None:
    assert world.run() == "withdrawn"
    assert world.published == []


def test_a_task_withdrawn_while_at_work_gives_no_report(world: World) -> None:
    def model(images: Sequence[GreyImage], timeout_s: float) -> Draft:
        world.store.delete(REF)
        return DRAFT

    world.model = model
    world.task()
    assert world.run() == "withdrawn"
    assert [event.type for event in world.published] == [REPORT_STARTED]


@pytest.mark.parametrize(
    ("content", "image", "code", "retryable"),
    [
        (b"bad", {}, "pixels_undecodable", False),
        (b"image", {"sha256": "0" * 64}, "object_corrupt", False),
        (b"image", {"object_ref": "objects/other"}, "object_missing", True),
        (b"x" * (2**20 + 1), {}, "image_too_large", False),
    ],
)
def test_faults_of_the_study(world: World, content: bytes, image: dict[str, Any], code: str, retryable: bool) -> None:
    world.task(content, **image)
    assert world.run() == "failed"
    failed = world.published[-1]
    assert failed.type == REPORT_FAILED
    assert (failed.data["error_code"], failed.data["retryable"]) == (code, retryable)


def test_an_unexpected_exception_is_an_internal_error_without_its_text(world: World) -> None:
    def broken(images: Sequence[GreyImage], timeout_s: float) -> Draft:
        raise KeyError("PatientName")

    world.model = broken
    world.task()
    assert world.run() == "failed"
    assert world.published[-1].data["error_code"] == "internal_error"
    assert "PatientName" not in json.dumps(dict(world.published[-1].data))


def test_the_model_gets_what_is_left_of_the_time(world: World) -> None:
    left: list[float] = []

    def model(images: Sequence[GreyImage], timeout_s: float) -> Draft:
        left.append(timeout_s)
        raise Fault("deadline_exceeded")

    world.model = model
    world.task()
    world.bus_away_for = 3
    assert world.run() == "failed"
    assert 100 < left[0] < 120
    assert world.published[-1].data["error_code"] == "deadline_exceeded"


def test_no_image_is_begun_behind_the_deadline(world: World) -> None:
    image = dict(world.task().data["images"][0])
    world.decode_s = 70.0
    world.task(request={"images": [image] * 5})
    assert world.run() == "failed"
    assert world.published[-1].data["error_code"] == "deadline_exceeded"
    assert world.decode_timeouts == [120.0, 50.0]


def test_a_bus_that_stays_away_sends_the_task_back(world: World) -> None:
    world.task()
    world.bus_away_for = 10**6
    with pytest.raises(BusUnavailable):
        world.run()
    assert world.published == []
    assert world.clock.monotonic() < 121


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_unknown_flags_are_named() -> None:
    assert notices(["brand_new", "brand_new"]) == ["The draft carries the flag brand_new."]


def test_a_suspect_works_alone() -> None:
    gate, order = Gate(), io.StringIO()
    first_inside, let_go = threading.Event(), threading.Event()

    def first() -> None:
        with gate.hold(alone=False):
            first_inside.set()
            let_go.wait(120)
            order.write("a")

    def suspect() -> None:
        with gate.hold(alone=True):
            order.write("s")

    def late() -> None:
        with gate.hold(alone=False):
            order.write("b")

    threads = [threading.Thread(target=target) for target in (first, suspect, late)]
    threads[0].start()
    assert first_inside.wait(120)
    threads[1].start()
    wait_until(lambda: gate._suspects_waiting == 1)
    threads[2].start()
    wait_until(lambda: gate._others_waiting == 1)
    let_go.set()
    for thread in threads:
        thread.join(120)
    assert order.getvalue() == "asb"


@pytest.mark.parametrize(
    ("request_", "redelivered", "asked"),
    [
        ({"attempt": 7}, False, [False]),
        ({"attempt": 7, "suspect": False}, False, [False]),
        ({"attempt": 2, "suspect": True}, False, [False, True]),
        ({"suspect": True}, True, [True]),
        ({}, True, [True]),
    ],
)
def test_what_may_have_ended_a_worker_is_alone_and_what_was_only_queued_again_is_not(
    world: World, request_: dict[str, Any], redelivered: bool, asked: list[bool]
) -> None:
    world.task(request=request_)
    assert world.run(redelivered=redelivered) == "generated"
    assert world.gate.asked == asked
    assert [event.type for event in world.published] == [REPORT_STARTED, REPORT_GENERATED]


def test_an_ordinary_study_waits_for_one_of_many_suspects() -> None:
    gate, order = Gate(), io.StringIO()
    first_inside, let_go = threading.Event(), threading.Event()

    def suspect() -> None:
        with gate.hold(alone=True):
            first_inside.set()
            let_go.wait(120)
            order.write("s")

    def ordinary() -> None:
        with gate.hold(alone=False):
            order.write("o")

    threads = [threading.Thread(target=suspect)]
    threads[0].start()
    assert first_inside.wait(120)
    for target in (suspect, suspect, ordinary, ordinary):
        threads.append(threading.Thread(target=target))
        threads[-1].start()
        wait_until(lambda: gate._suspects_waiting + gate._others_waiting == len(threads) - 1)
    let_go.set()
    for thread in threads:
        thread.join(120)
    assert order.getvalue() == "sooss"


def test_the_watchdog_ends_a_process_that_hangs() -> None:
    clock, stalled, ended = ManualClock(), [0.0], []
    watchdog = Watchdog(10, lambda: stalled[0], clock, ended.append)
    with watchdog.watch():
        clock.advance(9)
        assert not watchdog.look()
        clock.advance(2)
        assert watchdog.look()
    assert not watchdog.look()
    stalled[0] = 11
    assert watchdog.look()
    assert ended == [EXIT_HUNG, EXIT_HUNG]


def settings(**changes: Any) -> Settings:
    given = {"broker_url": "redis://h", "bus_url": "sqlite:////tmp/bus", "object_store_url": "file:///x"} | changes
    return Settings(**given)


def test_time_limits_keep_their_order_in_the_configuration_that_celery_gets() -> None:
    ours = settings()
    config = celery_config(ours.broker_url.get_secret_value(), ours.visibility_timeout_s)
    limits = [
        ours.request_deadline_s,
        ours.watchdog_s,
        ours.termination_grace_s - DRAIN_MARGIN_S,
        config["broker_transport_options"]["visibility_timeout"],
    ]
    assert limits == sorted(set(limits))


@pytest.mark.parametrize(
    "wrong",
    [
        {"request_deadline_s": 180},
        {"watchdog_s": 293},
        {"termination_grace_s": 1000},
        {"visibility_timeout_s": 200},
        {"broker_url": "amqp://h"},
        {"device": "tpu"},
    ],
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"order|redis|cuda"):
        settings(**wrong)


def test_every_flag_of_the_library_has_a_plain_sentence() -> None:
    raised = {value for name, value in vars(flags).items() if name.isupper() and isinstance(value, str)}
    assert "contradiction" in raised
    assert raised <= NOTICES.keys()
