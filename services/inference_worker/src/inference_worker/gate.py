"""Who may work at the same time as whom."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Gate:
    """Studies are worked on side by side; one that was begun before without an answer is worked on alone.

    Such a study may be the one that ends the process each time. Alone, it costs no other study an attempt. The two take
    turns: a suspect waits for those inside, an ordinary study for one suspect at most, however many there are.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False
        self._suspects_waiting = 0
        self._others_waiting = 0
        self._others_first = 0  # who waited when the last suspect ended, and is not inside yet
        self._suspects_ended = 0

    @contextlib.contextmanager
    def hold(self, *, alone: bool) -> Iterator[None]:
        """Wait for a place."""
        with self._changed:
            if alone:
                self._suspects_waiting += 1
                self._changed.wait_for(lambda: self._inside == 0 and self._others_first == 0)
                self._suspects_waiting -= 1
                self._alone = True
            elif self._alone or self._suspects_waiting:
                ended = self._suspects_ended
                self._others_waiting += 1
                self._changed.wait_for(lambda: self._suspects_ended > ended)
                self._others_first -= 1
            self._inside += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                if self._alone:
                    self._alone = False
                    self._suspects_ended += 1
                    self._others_first, self._others_waiting = self._others_waiting, 0
                self._changed.notify_all()
