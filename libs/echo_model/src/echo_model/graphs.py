"""Decoding passes as CUDA graphs: recorded once for every shape, then replayed with one launch."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

_WARM_UPS = 2


class GraphedPass:
    """Wraps a function that works on static tensors only and whose work is decided by its (hashable) argument.

    The first call for an argument runs it plainly, which also warms up the libraries' work areas; the next records it;
    later ones replay. All recordings share one memory pool, as they never run at the same time.
    """

    def __init__(self, work: Callable[[Any], None]) -> None:
        self._work = work
        self._calls: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, Any] = {}
        self._pool: Any = None

    def __call__(self, argument: Any) -> None:
        """Do the work, by replaying it where that is possible."""
        if (graph := self._graphs.get(argument)) is not None:
            graph.replay()
            return
        self._calls[argument] = self._calls.get(argument, 0) + 1
        if self._calls[argument] <= _WARM_UPS:
            self._work(argument)
            return
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._work(argument)
        self._pool = graph.pool()
        self._graphs[argument] = graph
        graph.replay()
