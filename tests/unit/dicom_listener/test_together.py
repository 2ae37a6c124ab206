"""Group commit: everybody gets the outcome of their own work, and waiting ones share a transaction."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from dicom_listener.adapters.together import Together


class _Odd(Exception):
    pass


class _Away(Exception):
    pass


class Work:
    """Doubles even numbers; the first call waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self.is_away = False

    def __call__(self, numbers: Sequence[int]) -> Sequence[int]:
        self.batches.append(list(numbers))
        if len(self.batches) == 1:
            self.has_begun.set()
            assert self.may_end.wait(120)
        if self.is_away:
            raise _Away
        if any(number % 2 for number in numbers):
            raise _Odd
        return [2 * number for number in numbers]


def is_of_all(error: Exception) -> bool:
    return isinstance(error, _Away)


def submitted_while_busy(work: Work, numbers: Sequence[int]) -> list[int | type[BaseException]]:
    """What each number came to; all but the first wait together."""
    together = Together(work, is_of_all=is_of_all)

    def one(number: int) -> int | type[BaseException]:
        try:
            return together(number)
        except (_Odd, _Away) as error:
            return type(error)

    with ThreadPoolExecutor(len(numbers)) as pool:
        first = pool.submit(one, numbers[0])
        assert work.has_begun.wait(120)
        others = [pool.submit(one, number) for number in numbers[1:]]
        while len(together._queue) < len(others):
            threading.Event().wait(0.01)
        work.may_end.set()
        return [future.result(120) for future in (first, *others)]


def test_those_who_wait_share_one_call() -> None:
    work = Work()
    assert submitted_while_busy(work, [2, 4, 6, 8]) == [4, 8, 12, 16]
    assert [sorted(batch) for batch in work.batches] == [[2], [4, 6, 8]]


def test_the_error_of_one_is_not_that_of_the_others() -> None:
    work = Work()
    assert submitted_while_busy(work, [2, 4, 7, 8]) == [4, 8, _Odd, 16]
    assert len(work.batches) == 1 + 1 + 3  # together, then each alone


def test_an_error_of_all_is_not_waited_for_again() -> None:
    work = Work()
    work.is_away = True
    assert submitted_while_busy(work, [2, 4, 6]) == [_Away] * 3
    assert len(work.batches) == 2


@pytest.mark.parametrize("threads", [1, 8])
def test_many_threads_get_what_is_theirs(threads: int) -> None:
    together: Together[int, int] = Together(lambda numbers: [3 * n for n in numbers], is_of_all=is_of_all)
    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(together, range(2000))) == [3 * n for n in range(2000)]
