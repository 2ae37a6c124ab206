"""Celery's loop inside the worker: started anew, and stopped in that very moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from celery.worker import state

from inference_worker.adapters import celery_worker
from inference_worker.adapters.celery_worker import CeleryWorker, make_app


class EndsByItself:
    """In place of Celery's worker; remembers whether it was told to stop when it began."""

    told: list[object]

    def start(self) -> None:
        self.told.append(state.should_stop)


class SetMeanwhile(threading.Event):
    """Set, and heard by who waits for it, right behind the back of who asks whether it is set after a pause."""

    paused = False

    def is_set(self) -> bool:
        was = super().is_set()
        if self.paused and not was:
            self.set()
            deadline = time.monotonic() + 60
            while state.should_stop is None:
                assert time.monotonic() < deadline, "nobody told Celery to stop"
                time.sleep(0.001)
        return was

    def wait(self, timeout: float | None = None) -> bool:
        self.paused = timeout is not None
        return super().wait(None if timeout is None else 0)


@pytest.fixture(autouse=True)
def own_state() -> Iterator[None]:
    yield
    state.should_stop = None


def test_a_stop_while_celery_is_started_anew_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    EndsByItself.told = []
    monkeypatch.setattr(celery_worker, "WorkController", lambda **_: EndsByItself())
    worker = CeleryWorker(make_app("redis://127.0.0.1:1/0", 60, 1, lambda *_: None))
    worker.run(SetMeanwhile())
    assert EndsByItself.told == [None, 0]
    assert worker.drained.is_set()
