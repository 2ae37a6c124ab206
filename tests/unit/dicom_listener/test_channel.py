"""Messages between processes: in order, answered or not, and what happens when one end is gone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from multiprocessing import Pipe
from typing import Any

import pytest

from dicom_listener.adapters.channel import Channel, ChannelClosed
from pipeline.errors import TransientError

WAIT_S = 120


@contextmanager
def connected(**handlers: Callable[..., Any]) -> Iterator[tuple[Channel, Channel]]:
    """One end that asks, and one that handles."""
    ours, theirs = Pipe()
    asking, answering = Channel(ours, {}), Channel(theirs, handlers)
    threads = [threading.Thread(target=each.run, daemon=True) for each in (asking, answering)]
    for thread in threads:
        thread.start()
    yield asking, answering
    ours.send_bytes(b"")  # no message: the one who reads it ends, which ends the other
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_what_was_told_comes_before_what_is_asked_later() -> None:
    heard: list[int] = []
    with connected(hear=heard.append, heard=lambda: list(heard)) as (asking, _):
        for number in range(100):
            asking.tell("hear", number)
        assert asking.ask("heard", timeout=WAIT_S) == list(range(100))


def test_what_was_told_waits_for_the_next_message_or_a_flush() -> None:
    heard: list[str] = []
    news = threading.Event()

    def hear(word: str) -> None:
        heard.append(word)
        news.set()

    with connected(hear=hear) as (asking, _):
        asking.tell("hear", "later")
        assert not news.wait(0.05)
        asking.tell("hear", "soon", soon=True)
        assert news.wait(WAIT_S)
        news.clear()
        asking.tell("hear", "flushed")
        asking.flush()
        assert news.wait(WAIT_S)
    assert heard == ["later", "soon", "flushed"]


def test_a_slow_answer_does_not_hold_up_others() -> None:
    slow: Future[str] = Future()
    with connected(slow=lambda: slow, quick=lambda: "quick") as (asking, _):
        answers: list[str] = []
        waiting = threading.Thread(target=lambda: answers.append(asking.ask("slow", timeout=WAIT_S)))
        waiting.start()
        assert asking.ask("quick", timeout=WAIT_S) == "quick"
        slow.set_result("slow")
        waiting.join(WAIT_S)
    assert answers == ["slow"]


@pytest.mark.parametrize(
    ("raised", "expected"), [(TransientError("away"), TransientError), (KeyError("a fault"), RuntimeError)]
)
def test_an_error_is_raised_where_the_question_came_from(raised: Exception, expected: type[Exception]) -> None:
    def fail() -> None:
        raise raised

    with connected(fail=fail) as (asking, _), pytest.raises(expected, match=type(raised).__name__):
        asking.ask("fail", timeout=WAIT_S)


def test_without_an_answer_in_time() -> None:
    never: Future[None] = Future()
    with connected(never=lambda: never) as (asking, _), pytest.raises(TimeoutError):
        asking.ask("never", timeout=0.05)


def test_whoever_waits_is_told_when_the_other_end_is_gone() -> None:
    ours, theirs = Pipe()
    asking = Channel(ours, {})
    running = threading.Thread(target=asking.run, daemon=True)
    running.start()
    errors: list[Exception] = []

    def ask() -> None:
        try:
            asking.ask("anything", timeout=WAIT_S)
        except TransientError as error:
            errors.append(error)

    waiting = threading.Thread(target=ask)
    waiting.start()
    assert theirs.recv()  # it has been asked
    theirs.close()
    waiting.join(WAIT_S)
    running.join(WAIT_S)
    assert [type(error) for error in errors] == [ChannelClosed]
    with pytest.raises(ChannelClosed):
        asking.ask("anything")
    asking.tell("nobody hears", soon=True)


LONG = bytes(4 * 2**20)  # more than the system keeps for a process that does not read


def test_long_messages_that_cross_do_not_wait_for_each_other() -> None:
    ends = [Channel(end, {"size": len}) for end in Pipe()]
    for each in ends:
        threading.Thread(target=each.run, daemon=True).start()
    answers: list[int] = []
    asking = [
        threading.Thread(target=lambda each=each: answers.append(each.ask("size", LONG, timeout=WAIT_S)), daemon=True)
        for each in ends
        for _ in range(5)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(WAIT_S)
    assert answers == [len(LONG)] * 10


def test_nobody_waits_for_a_long_message_that_is_not_read() -> None:
    ours, theirs = Pipe()
    channel = Channel(ours, {})
    telling = threading.Thread(target=lambda: channel.tell("hear", LONG, soon=True), daemon=True)
    telling.start()
    assert theirs.poll(WAIT_S)  # begun
    with pytest.raises(TimeoutError):
        channel.ask("check", timeout=0.1)
    channel.tell("hear", soon=True)
    assert telling.is_alive()
    theirs.close()
    telling.join(WAIT_S)
    assert not telling.is_alive()
