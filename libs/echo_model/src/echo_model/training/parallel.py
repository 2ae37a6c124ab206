"""One training in several processes that each do a share of every batch (``accelerate launch`` starts them).

The losses are sums over a share divided by counts over the whole batch, and gradients are added up before the update,
so that several processes do the updates that one would do, but for rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import numpy as np
import torch

_MESSAGE: Final = 64_000_000
"""Numbers of a message at most: gradients are copied once more while they are added up."""


class Share:
    """The whole batch: a training in one process."""

    rank = 0
    world = 1

    def own(self, rows: Sequence[int] | Any) -> Any:
        """The rows of a batch that are this process's."""
        return np.asarray(rows)[self.rank :: self.world]

    def counts(self, own: torch.Tensor) -> torch.Tensor:
        """Counts over the whole batch from those over the own share."""
        return own

    def first_alone(self) -> AbstractContextManager[Any]:
        """A stretch that the first process goes through before the others do; they find its files."""
        return nullcontext()

    def wait(self) -> None:
        """Until all processes have come here."""

    def agree(self, own: float) -> float:
        """The first process's number: what depends on a clock must be the same in all of them."""
        return own

    def gather(self, own: list[Any]) -> list[Any]:
        """The lists of all processes behind each other."""
        return own

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add the gradients of all processes up."""

    def join_figures(self, figures: dict[str, float]) -> dict[str, float]:
        """Figures to show: means over the processes; the loss, which is a share of a sum, is added up."""
        return figures


class ProcessShare(Share):
    """A share of every batch in one of several processes that accelerate has started.

    Needs the package ``accelerate`` (extra ``train``); raises ModuleNotFoundError without it.
    """

    def __init__(self, *, cpu: bool = True) -> None:
        from accelerate import PartialState  # type: ignore[import-untyped]  # accelerate publishes no types

        self._state: Any = PartialState(cpu=cpu)
        self.rank, self.world = int(self._state.process_index), int(self._state.num_processes)

    def first_alone(self) -> AbstractContextManager[Any]:
        """A stretch that the first process goes through before the others do; they find its files."""
        context: AbstractContextManager[Any] = self._state.main_process_first()
        return context

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        from accelerate.utils import reduce  # type: ignore[import-untyped]  # accelerate publishes no types

        total: torch.Tensor = reduce(value.clone().to(self._state.device), reduction="sum")
        return total.to(value.device)

    def counts(self, own: torch.Tensor) -> torch.Tensor:
        """Counts over the whole batch from those over the own share."""
        return self._sum(own.detach().float())

    def wait(self) -> None:
        """Until all processes have come here."""
        self._state.wait_for_everyone()

    def agree(self, own: float) -> float:
        """The first process's number: what depends on a clock must be the same in all of them."""
        return float(self.gather([own])[0])

    def gather(self, own: list[Any]) -> list[Any]:
        """The lists of all processes behind each other."""
        from accelerate.utils import gather_object

        found: list[Any] = gather_object(own)
        return found

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add the gradients of all processes up, in few messages; a process without any adds nothing."""
        for some in _messages(parameters):
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in some])
            parts = torch.split(self._sum(flat), [p.numel() for p in some])
            for parameter, part in zip(some, parts, strict=True):
                parameter.grad = part.view_as(parameter).clone()

    def join_figures(self, figures: dict[str, float]) -> dict[str, float]:
        """Figures to show: means over the processes that have them; the loss is added up."""
        every: list[dict[str, float]] = self.gather([figures])
        names = sorted({name for each in every for name in each})
        joined = {name: float(np.mean([each[name] for each in every if name in each])) for name in names}
        return joined | {"loss": sum(each.get("loss", 0.0) for each in every)}


class ShardedShare(ProcessShare):
    """A share where weights and gradients are spread over the processes: sharding adds the gradients up itself."""

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Nothing is left to do."""


def share_of_this_process(*, cpu: bool = True, sharded: bool = False) -> Share:
    """The share that the environment names (``WORLD_SIZE``), else the whole batch."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Share()
    return ShardedShare(cpu=cpu) if sharded else ProcessShare(cpu=cpu)


def _messages(parameters: Iterable[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Parameters in order, as many at a time as a message may hold."""
    some: list[torch.nn.Parameter] = []
    for parameter in parameters:
        if some and sum(p.numel() for p in some) + parameter.numel() > _MESSAGE:
            yield some
            some = []
        some.append(parameter)
    if some:
        yield some
