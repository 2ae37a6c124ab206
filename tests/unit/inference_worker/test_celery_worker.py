"""How Celery is told to stop and what it has in hand, at the worst moments."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state

from inference_worker.adapters import celery_worker
from inference_worker.adapters.celery_worker import CeleryWorker


@pytest.fixture(autouse=True)
def celery_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a process has it that runs no worker, afterwards too."""
    monkeypatch.setattr(state, "should_stop", None)
    yield
    for thread in threading.enumerate():
        if thread.name == "celery-stop":
            thread.join()


class StopJustThen(threading.Event):
    """Is set, and Celery told, after the worker has looked for the last time before it starts Celery anew."""

    looks = 0

    def is_set(self) -> bool:
        was = super().is_set()
        self.looks += 1
        if self.looks == 2 and not was:
            self.set()
            state.should_stop = 0
        return was


def test_a_stop_while_celery_is_started_anew_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopJustThen()
    seen: list[object] = []

    class Controller:
        def start(self) -> None:
            seen.append(state.should_stop)

    monkeypatch.setattr(CeleryWorker, "_new_controller", lambda _: Controller())
    monkeypatch.setattr(celery_worker, "_RESTART_PAUSE_S", 0.0)
    app: Any = SimpleNamespace(pool=SimpleNamespace(force_close_all=lambda: None))
    worker = CeleryWorker(app)
    worker.run(stop)
    assert seen == [None, 0]
    assert worker.drained.is_set()


def test_tasks_that_end_while_they_are_counted_do_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shrinking:
        """Loses one while it is walked over."""

        def __init__(self) -> None:
            self.there = {"ended", "first"}

        def __iter__(self) -> Iterator[str]:
            for each in self.there:
                yield each
                self.there.discard("ended")

    monkeypatch.setattr(state, "reserved_requests", Shrinking())
    monkeypatch.setattr(state, "active_requests", {"second"})
    assert celery_worker._in_hand() == {"first", "second"}
