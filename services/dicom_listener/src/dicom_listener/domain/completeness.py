"""When a version of a study counts as complete. Times come from the database rows, so restarts change nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum


class CompletionReason(Enum):
    """The rule that held, as the event names it."""

    QUIET_PERIOD = "quiet_period"
    ASSOCIATION_RELEASED = "association_released"
    MAXIMUM_AGE = "maximum_age"


@dataclass(frozen=True)
class Rules:
    """Seconds of the three rules."""

    quiet_seconds: float
    release_seconds: float
    maximum_age_seconds: float

    @property
    def after_release(self) -> float:
        """The release rule can only shorten the wait."""
        return min(self.release_seconds, self.quiet_seconds)


@dataclass(frozen=True)
class OpenStudy:
    """The row of a study that is being received. `released_at` is set when its last association was released."""

    study_instance_uid: str
    version: int
    opened_at: datetime
    last_received_at: datetime
    released_at: datetime | None
    instance_count: int


@dataclass(frozen=True)
class Waited:
    """Seconds since the last object, since the release (None: none, or an association is still open), and open."""

    since_last: float
    since_release: float | None
    since_opened: float


def complete_because(rules: Rules, waited: Waited) -> CompletionReason | None:
    """The reason why the study counts as complete now, or None."""
    if waited.since_release is not None and waited.since_release >= rules.after_release:
        return CompletionReason.ASSOCIATION_RELEASED
    if waited.since_last >= rules.quiet_seconds:
        return CompletionReason.QUIET_PERIOD
    if waited.since_opened >= rules.maximum_age_seconds:
        return CompletionReason.MAXIMUM_AGE
    return None


class Stopwatches:
    """Elapsed time that survives both a restart and a wall clock that is set.

    The wall clock is asked once for each change of a row, when this process first sees it, which is what carries over
    a restart; from there on the monotonic clock measures. A clock set forward closes nothing early, one set back delays
    nothing beyond one period.
    """

    def __init__(self) -> None:
        self._began: dict[tuple[str, str], tuple[object, float]] = {}  # on the monotonic clock

    def waited(self, study: OpenStudy, now: datetime, monotonic: float, *, carried: bool) -> Waited:
        """How long each of the three times lies back. `carried`: an association that brought objects is still open."""
        uid = study.study_instance_uid
        changed = (study.version, study.last_received_at, study.instance_count)
        since_release = None
        if study.released_at is not None and not carried:
            mark = (*changed, study.released_at)
            since_release = self._elapsed((uid, "release"), mark, study.released_at, now, monotonic)
        else:
            self._began.pop((uid, "release"), None)
        return Waited(
            since_last=self._elapsed((uid, "last"), changed, study.last_received_at, now, monotonic),
            since_release=since_release,
            since_opened=self._elapsed((uid, "opened"), study.version, study.opened_at, now, monotonic),
        )

    def _elapsed(self, key: tuple[str, str], mark: object, start: datetime, now: datetime, monotonic: float) -> float:
        began = self._began.get(key)
        if began is None or began[0] != mark:
            began = self._began[key] = (mark, monotonic - max(0.0, (now - start).total_seconds()))
        return monotonic - began[1]

    def keep_only(self, open_uids: set[str]) -> None:
        """Forget studies that are not open any more."""
        for key in [key for key in self._began if key[0] not in open_uids]:
            del self._began[key]
