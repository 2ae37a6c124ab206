"""Who may work at the same time as whom."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Gate:
    """Studies are worked on side by side; one that was begun before without an answer is worked on alone.

    Such a study may be the one that ends the process each time. Alone, it costs no other study an attempt.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False
        self._suspects_waiting = 0

    @contextlib.contextmanager
    def hold(self, *, alone: bool) -> Iterator[None]:
        """Wait for a place; ordinary studies let a waiting suspect pass first, so that it is not put off for ever."""
        with self._changed:
            if alone:
                self._suspects_waiting += 1
                self._changed.wait_for(lambda: self._inside == 0)
                self._suspects_waiting -= 1
                self._alone = True
            else:
                self._changed.wait_for(lambda: not self._alone and self._suspects_waiting == 0)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._alone = False
                self._changed.notify_all()
