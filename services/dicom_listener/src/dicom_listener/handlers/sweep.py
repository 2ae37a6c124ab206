"""Objects that nobody needs any more: those that a crash left without a row, and those kept long enough.

A file is deleted only while no association is about to index it, and only if then no row speaks for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Protocol

from dicom_listener import metrics
from pipeline.clock import Clock
from pipeline.database import is_transient
from pipeline.store import ObjectStore

log = logging.getLogger(__name__)

_BATCH = 200


class UnderWay(Protocol):
    """Keys between the renaming of a file and the commit of its row."""

    def keeping(self, key: str) -> AbstractContextManager[None]:
        """The file is moved to its place and indexed inside this block."""
        ...

    def unless_kept(self, key: str) -> AbstractContextManager[bool]:
        """True if nobody keeps the key; nobody begins to until the block ends."""
        ...


class ObjectIndex(Protocol):
    """What the database knows of objects."""

    def needed(self, keys: Sequence[str]) -> Collection[str]:
        """Those of the keys for which a row speaks: of an object, or of the refusal that put it in quarantine."""
        ...

    def expire(self, before: datetime, limit: int) -> Sequence[str]:
        """Give up the objects of studies complete since before then; their keys. None: there are no more."""
        ...

    def old_refusals(self, before: datetime, limit: int) -> tuple[Sequence[int], Collection[str]]:
        """Up to `limit` refusals older than that; keys of what was kept in quarantine for them and no younger one."""
        ...

    def forget_refusals(self, ids: Sequence[int]) -> None:
        """Delete these refusals."""
        ...


class Sweeper:
    """The loop behind orphan collection and retention. One listener owns a store, so its `UnderWay` knows all keys."""

    def __init__(
        self,
        store: ObjectStore,
        index: ObjectIndex,
        under_way: UnderWay,
        clock: Clock,
        *,
        orphan_grace: timedelta,
        keep_objects: timedelta | None,
        keep_refusals: timedelta,
        interval: timedelta,
    ) -> None:
        self._store = store
        self._index = index
        self._under_way = under_way
        self._clock = clock
        self._grace_s = orphan_grace.total_seconds()
        self._keep_objects = keep_objects
        self._keep_refusals = keep_refusals
        self._interval_s = interval.total_seconds()
        self._suspects: dict[str, float] = {}

    def sweep(self, stop: threading.Event) -> None:
        """Everything once."""
        self.collect_orphans(stop)
        self.expire(stop)

    def collect_orphans(self, stop: threading.Event) -> int:
        """Delete objects that have had no row for the grace time, as this process saw it; returns how many."""
        seen: dict[str, float] = {}
        deleted = 0
        for folder in (*(f"objects/{number:02x}" for number in range(256)), "quarantine"):
            if stop.is_set():
                return deleted
            keys = [key for key in self._store.keys(folder) if key.endswith(".dcm")]
            for start in range(0, len(keys), _BATCH):
                some = keys[start : start + _BATCH]
                for key in set(some) - set(self._index.needed(some)):
                    since = seen[key] = self._suspects.get(key, self._clock.monotonic())
                    if self._clock.monotonic() - since >= self._grace_s and self._delete(key):
                        deleted += 1
                        metrics.SWEPT.labels(kind="orphan").inc()
        self._suspects = seen
        if deleted:
            log.info("objects without a row removed", extra={"objects": deleted})
        return deleted

    def expire(self, stop: threading.Event) -> int:
        """Delete what is kept no longer, in small steps, so that receiving is not held up; returns how many."""
        now, deleted = self._clock.now(), 0
        while self._keep_objects is not None and not stop.is_set():
            keys = self._index.expire(now - self._keep_objects, 20)
            if not keys:
                break
            for key in keys:
                deleted += self._delete(key)
            metrics.SWEPT.labels(kind="retention").inc(len(keys))
        self._expire_refusals(now - self._keep_refusals, stop)
        return deleted

    def _expire_refusals(self, before: datetime, stop: threading.Event) -> None:
        """Files first: what a crash leaves behind still has its row, and goes the next time."""
        while not stop.is_set():
            ids, keys = self._index.old_refusals(before, _BATCH)
            if not ids:
                break
            for key in keys:
                self._remove(key)
                metrics.SWEPT.labels(kind="quarantine").inc()
            self._index.forget_refusals(ids)

    def _delete(self, key: str) -> bool:
        with self._under_way.unless_kept(key) as free:
            if not free or self._index.needed([key]):
                return False
            self._remove(key)
            return True

    def _remove(self, key: str) -> None:
        if key.startswith("quarantine/"):
            self._store.delete(key.removesuffix(".dcm") + ".json")
        self._store.delete(key)

    def run(self, stop: threading.Event) -> None:
        """At start and then every so often; an unreachable database or store is tried again soon."""
        while not stop.is_set():
            pause = self._interval_s
            try:
                self.sweep(stop)
            except Exception as error:
                if not is_transient(error):
                    raise
                log.warning("sweeping waits", extra={"error": type(error).__name__})
                pause = min(pause, 10.0)
            self._clock.wait(stop, pause)
