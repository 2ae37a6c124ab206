"""Studies fetched from an archive: each request is a row, tried until all that the archive lists is here.

An attempt starts from the beginning every time, asks the archive what there is, and retrieves only studies of which
something is missing. So it may be cut off anywhere, by a restart too, and done again. The objects come through the
ordinary door.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Literal, Protocol

from dicom_listener import metrics
from dicom_listener.domain.fetch import (
    ArchivedSeries,
    ArchivedStudy,
    FetchFailed,
    Problem,
    Role,
    Share,
    may_show_chest,
    older_studies,
)
from pipeline.clock import Clock
from pipeline.database import is_transient
from pipeline.telemetry import study_ref

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 600.0
_MOST_LOOKED_AT = 30  # older studies of one patient, newest first, of which the series are asked for

State = Literal["queued", "running", "done", "failed"]


@dataclass(frozen=True)
class Wish:
    """What somebody asks for: a study by one of its two names, and so many of its priors."""

    study_instance_uid: str | None
    accession_number: str | None
    priors: int


@dataclass(frozen=True)
class Fetch:
    """A request and how it stands. `problem`: code and text of the last failure."""

    id: str
    wish: Wish
    state: State
    attempts: int
    problem: tuple[str, str] | None
    shares: tuple[Share, ...]
    created_at: datetime
    updated_at: datetime
    next_attempt_at: datetime | None


class Fetches(Protocol):
    """The database's side. Every method is one transaction."""

    def ask(self, wish: Wish, now: datetime) -> tuple[Fetch, bool]:
        """Write a wish down (True), or find the same one that is not finished yet (False)."""
        ...

    def get(self, id_: str) -> Fetch | None:
        """One request."""
        ...

    def latest(self, state: State | None, limit: int) -> Sequence[Fetch]:
        """The newest requests."""
        ...

    def claim(self, now: datetime) -> Fetch | None:
        """Begin an attempt at the request that has been due longest."""
        ...

    def report(self, id_: str, shares: Sequence[Share], now: datetime) -> None:
        """How far the attempt under way is."""
        ...

    def finish(self, id_: str, state: State, problem: tuple[str, str] | None, now: datetime) -> None:
        """No more attempts."""
        ...

    def postpone(self, id_: str, problem: tuple[str, str], until: datetime, now: datetime) -> None:
        """Another attempt, not before then."""
        ...

    def adopt(self, now: datetime) -> int:
        """At start: attempts that died with the earlier process are due again."""
        ...

    def open_count(self) -> int:
        """Requests that are not finished."""
        ...

    def forget(self, before: datetime) -> None:
        """Delete what was finished longer ago."""
        ...

    def held(self, study_instance_uid: str) -> Collection[str]:
        """SOP Instance UIDs of the study's objects that are here."""
        ...

    def mark(self, study_instance_uid: str, role: Role, now: datetime) -> None:
        """Before the first object of a study comes: a prior gets no report of its own, unless the study was known."""
        ...


class Archive(Protocol):
    """A PACS. Every method raises `FetchFailed`."""

    def studies(self, wish: Wish) -> Sequence[ArchivedStudy]:
        """Those that the wish names."""
        ...

    def studies_of_patient(self, patient_id: str, until: date) -> Sequence[ArchivedStudy]:
        """Taken on that day or before."""
        ...

    def series(self, study_instance_uid: str) -> Sequence[ArchivedSeries]:
        """Of one study."""
        ...

    def instances(self, study_instance_uid: str) -> Collection[str]:
        """SOP Instance UIDs of one study."""
        ...

    def retrieve(self, study_instance_uid: str, stop: threading.Event) -> None:
        """Make all objects of the study come through the door; returns when no more will."""
        ...


class FetchLoop:
    """Several threads may run it. `news` is set when a request was written down."""

    def __init__(
        self,
        fetches: Fetches,
        archive: Archive,
        news: threading.Event,
        clock: Clock,
        *,
        attempts: int,
        keep: timedelta = timedelta(days=90),
    ) -> None:
        self._fetches = fetches
        self._archive = archive
        self._clock = clock
        self._attempts = attempts
        self._keep = keep
        self._next_prune = 0.0
        self._news = news

    def step(self, stop: threading.Event) -> bool:
        """One attempt, if one is due."""
        metrics.FETCHES_OPEN.set(self._fetches.open_count())
        if self._clock.monotonic() >= self._next_prune:
            self._next_prune = self._clock.monotonic() + 3600
            self._fetches.forget(self._clock.now() - self._keep)
        fetch = self._fetches.claim(self._clock.now())
        if fetch is None:
            return False
        try:
            self._attempt(fetch, stop)
        except FetchFailed as failed:
            self._failed(fetch, failed, stop)
        except Exception as error:
            if is_transient(error):
                self._failed(fetch, FetchFailed(Problem.NOT_KEPT, "the database is away"), stop)
            else:
                log.exception("fetch failed")
                self._failed(fetch, FetchFailed(Problem.INTERNAL, type(error).__name__), stop)
        else:
            self._written(lambda: self._fetches.finish(fetch.id, "done", None, self._clock.now()), stop)
            metrics.FETCHES.labels(outcome="done").inc()
            log.info("fetched", extra={"fetch": fetch.id, "attempts": fetch.attempts})
        return True

    def _failed(self, fetch: Fetch, failed: FetchFailed, stop: threading.Event) -> None:
        now, problem = self._clock.now(), (failed.problem.code, failed.text)
        metrics.FETCH_FAILURES.labels(reason=failed.problem.code).inc()
        log.warning("fetch attempt failed", extra={"fetch": fetch.id, "reason": problem[0], "detail": problem[1]})
        if failed.problem.again and fetch.attempts < self._attempts:
            pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(fetch.attempts - 1, 20))
            until = now + timedelta(seconds=pause)
            self._written(lambda: self._fetches.postpone(fetch.id, problem, until, now), stop)
        else:
            self._written(lambda: self._fetches.finish(fetch.id, "failed", problem, now), stop)
            metrics.FETCHES.labels(outcome="failed").inc()

    def _written(self, write: Callable[[], None], stop: threading.Event) -> None:
        """How the attempt ended must be written, or nobody would take the request up again before a restart."""
        while True:
            try:
                write()
                return
            except Exception as error:
                if not is_transient(error) or stop.is_set():
                    raise
                log.warning("the end of a fetch waits for the database", extra={"error": type(error).__name__})
                self._clock.wait(stop, 2.0)

    def _attempt(self, fetch: Fetch, stop: threading.Event) -> None:
        shares: list[Share] = []
        for study, role in self._wanted(fetch.wish):
            shares.append(self._bring(study.study_instance_uid, role, stop))
            self._fetches.report(fetch.id, shares, self._clock.now())
        missing = sum(share.expected - share.held for share in shares)
        if missing:
            raise FetchFailed(Problem.INCOMPLETE, f"{missing} of {sum(share.expected for share in shares)}")

    def _wanted(self, wish: Wish) -> Iterator[tuple[ArchivedStudy, Role]]:
        found = self._archive.studies(wish)
        if not found:
            raise FetchFailed(Problem.NOT_FOUND)
        for study in found:
            yield study, "study"
        for prior in self._priors(found, wish.priors):
            yield prior, "prior"

    def _priors(self, found: Sequence[ArchivedStudy], count: int) -> Iterator[ArchivedStudy]:
        study, asked_for = found[0], {each.study_instance_uid for each in found}
        if count == 0 or not study.patient_id:
            return
        today = self._clock.now().date()
        listed = self._archive.studies_of_patient(study.patient_id, _day(study.date) or today)
        others = [each for each in listed if each.study_instance_uid not in asked_for]
        for each in older_studies(study, others, f"{today:%Y%m%d}")[:_MOST_LOOKED_AT]:
            if may_show_chest(each, self._archive.series(each.study_instance_uid)):
                yield each
                count -= 1
                if count == 0:
                    return

    def _bring(self, study_instance_uid: str, role: Role, stop: threading.Event) -> Share:
        wanted = set(self._archive.instances(study_instance_uid))
        self._fetches.mark(study_instance_uid, role, self._clock.now())
        if wanted.difference(self._fetches.held(study_instance_uid)):
            log.info("retrieving", extra={"study": study_ref(study_instance_uid), "role": role})
            self._archive.retrieve(study_instance_uid, stop)
        held = wanted.intersection(self._fetches.held(study_instance_uid))
        return Share(study_instance_uid, role, len(wanted), len(held))

    def run(self, stop: threading.Event) -> None:
        """Until stopped; an unreachable database is waited for."""
        while not stop.is_set():
            try:
                worked = self.step(stop)
            except Exception as error:
                if not is_transient(error):
                    raise
                log.warning("fetching waits", extra={"error": type(error).__name__})
                self._clock.wait(stop, 2.0)
                worked = False
            if not worked:
                self._news.wait(0.5)
                self._news.clear()


def _day(text: str) -> date | None:
    try:
        return datetime.strptime(text, "%Y%m%d").date()
    except ValueError:
        return None
