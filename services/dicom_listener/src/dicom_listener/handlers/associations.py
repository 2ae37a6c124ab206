"""Which studies the open associations have carried, so that a release can shorten the wait for completeness."""

from __future__ import annotations

import threading
from datetime import datetime

from dicom_listener.ports import Association


class Associations:
    """Thread-safe; lives in memory only, since associations die with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._carried: dict[Association, set[str]] = {}
        self._released: dict[str, datetime] = {}

    def carry(self, association: Association, study_instance_uid: str) -> None:
        """The association brings an object of the study."""
        with self._lock:
            self._carried.setdefault(association, set()).add(study_instance_uid)

    def end(self, association: Association, released_at: datetime | None) -> None:
        """The association has ended: released in order, or (None) aborted, after which its sender will try again."""
        with self._lock:
            studies = self._carried.pop(association, set())
            if released_at is not None:
                self._released.update(dict.fromkeys(studies, released_at))

    def carried(self) -> set[str]:
        """Studies of which an association is still open."""
        with self._lock:
            return self._carried_now()

    def _carried_now(self) -> set[str]:
        for association in [a for a in self._carried if not a.is_alive()]:
            del self._carried[association]
        return set().union(*self._carried.values()) if self._carried else set()

    def take_released(self) -> dict[str, datetime]:
        """Studies whose association was released since the last call and that no other association carries."""
        with self._lock:  # held throughout: what is released in between would be taken for carried, and forgotten
            carried = self._carried_now()
            taken = {uid: at for uid, at in self._released.items() if uid not in carried}
            self._released.clear()
            return taken

    def give_back(self, released: dict[str, datetime]) -> None:
        """They could not be written down; take them next time."""
        with self._lock:
            self._released = {**released, **self._released}
