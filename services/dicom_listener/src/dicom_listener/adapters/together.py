"""Work of several threads in one transaction: what a commit costs is paid once for all that wait meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass
class _Waiting(Generic[Item, Outcome]):
    item: Item
    outcome: Outcome | None = None
    error: Exception | None = None
    is_done: bool = False


class Together(Generic[Item, Outcome]):
    """Call it from any number of threads. One of those that wait does the work of all (group commit).

    `work` gets items in the order of their coming and returns an outcome for each. If it raises an error that is not
    `is_of_all`, it is called again for each item alone, so that nobody gets the error of another one.
    """

    def __init__(
        self, work: Callable[[Sequence[Item]], Sequence[Outcome]], *, is_of_all: Callable[[Exception], bool]
    ) -> None:
        self._work = work
        self._is_of_all = is_of_all
        self._turn = threading.Condition()
        self._busy = False
        self._queue: list[_Waiting[Item, Outcome]] = []

    def __call__(self, item: Item) -> Outcome:
        """The item's outcome, once the work is done; raises what `work` raised for it."""
        (outcome,) = self.each([item])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def each(self, items: Sequence[Item]) -> Sequence[Outcome | Exception]:
        """The outcome of each, or what `work` raised for it, once the work is done for all of them."""
        mine: list[_Waiting[Item, Outcome]] = [_Waiting(item) for item in items]
        with self._turn:
            self._queue += mine
            while self._busy and not mine[-1].is_done:
                self._turn.wait()
            if not mine[-1].is_done:
                self._busy = True
                batch, self._queue = self._queue, []
        if not mine[-1].is_done:
            try:
                self._do(batch)
            finally:
                with self._turn:
                    for each in batch:
                        each.is_done = True
                    self._busy = False
                    self._turn.notify_all()
        return [each.error or _there(each.outcome) for each in mine]

    def _do(self, batch: Sequence[_Waiting[Item, Outcome]]) -> None:
        try:
            for each, outcome in zip(batch, self._work([each.item for each in batch]), strict=True):
                each.outcome = outcome
            return
        except Exception as error:  # noqa: BLE001  # it is raised where the item came from
            if len(batch) == 1 or self._is_of_all(error):
                for each in batch:
                    each.error = error
                return
        for each in batch:
            self._do([each])


def _there(outcome: Outcome | None) -> Outcome:
    assert outcome is not None
    return outcome
