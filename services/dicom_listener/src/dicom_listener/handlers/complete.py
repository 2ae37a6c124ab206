"""The loop that closes study versions. It reads the database, so it goes on where an earlier process stopped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection

from dicom_listener import metrics
from dicom_listener.domain.completeness import OpenStudy, Rules, Stopwatches, Waited, complete_because
from dicom_listener.handlers.associations import Associations
from dicom_listener.ports import Ledger
from pipeline.clock import Clock
from pipeline.database import is_transient
from pipeline.errors import InvalidEvent
from pipeline.telemetry import study_ref

log = logging.getLogger(__name__)


class CompletenessLoop:
    """Looks at the open studies a few times a second."""

    def __init__(
        self, ledger: Ledger, associations: Associations, rules: Rules, clock: Clock, *, interval_s: float = 0.25
    ) -> None:
        self._ledger = ledger
        self._associations = associations
        self._rules = rules
        self._clock = clock
        self._interval_s = interval_s
        self._stopwatches = Stopwatches()
        self._unsendable: set[tuple[str, int]] = set()

    def adopt(self) -> None:
        """Call before the first association: what an earlier process left open counts as released now."""
        abandoned = self._ledger.mark_abandoned(self._clock.now())
        if abandoned:
            log.info("studies of an earlier process are still open", extra={"studies": abandoned})

    def step(self) -> int:
        """One look; returns how many versions were closed."""
        released = self._associations.take_released()
        if released:
            try:
                self._ledger.mark_released(released)
            except Exception:
                self._associations.give_back(released)
                raise
        carried = self._associations.carried()
        studies = self._ledger.open_studies()
        self._stopwatches.keep_only({study.study_instance_uid for study in studies})
        looked_at = [(study, self._waited(study, carried)) for study in studies]
        metrics.OPEN_STUDIES.set(len(studies))  # from now on a wall clock that is set changes nothing for them
        closed = 0
        for study, waited in looked_at:
            now = self._clock.now()
            reason = complete_because(self._rules, waited)
            if reason is None or (study.study_instance_uid, study.version) in self._unsendable:
                continue
            try:
                if not self._ledger.complete(study, reason, now):
                    continue
            except InvalidEvent as error:
                # One study that the schema cannot carry must not hold up the others; it stays open and visible.
                self._unsendable.add((study.study_instance_uid, study.version))
                ref = study_ref(study.study_instance_uid)
                log.error("study cannot be announced", extra={"study": ref, "code": error.code})
                continue
            closed += 1
            metrics.COMPLETED.labels(reason=reason.value).inc()
            log.info(
                "study complete",
                extra={
                    "study": study_ref(study.study_instance_uid),
                    "version": study.version,
                    "reason": reason.value,
                    "instances": study.instance_count,
                },
            )
        return closed

    def _waited(self, study: OpenStudy, carried: Collection[str]) -> Waited:
        is_carried = study.study_instance_uid in carried
        return self._stopwatches.waited(study, self._clock.now(), self._clock.monotonic(), carried=is_carried)

    def run(self, stop: threading.Event) -> None:
        """Until stopped; an unreachable database is waited for."""
        failures = 0
        while not stop.is_set():
            try:
                self.step()
                failures = 0
            except Exception as error:
                if not is_transient(error):
                    raise
                failures += 1
                log.warning("completeness waits", extra={"error": type(error).__name__, "failures": failures})
            self._clock.wait(stop, min(5.0, self._interval_s * 2**failures))
