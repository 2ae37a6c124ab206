"""What a person does: look at what waits, decide, try again, give up, pause. The same behind REST and commands."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dispatcher.domain.holds import Hold
from dispatcher.domain.jobs import Job
from dispatcher.handlers import Handlers
from dispatcher.ports import Letter, Pause, Unit, Units
from pipeline.clock import Clock, iso
from pipeline.errors import InvalidEvent
from pipeline.events import Event
from pipeline.telemetry import study_ref

log = logging.getLogger(__name__)

MOST = 500
"""Entries of one list."""


class Unknown(LookupError):
    """There is no such thing."""


class NotNow(ValueError):
    """It is there, but in a state in which this cannot be done; the text says why."""


class Desk:
    """Each method is one transaction. Raises `Unknown` and `NotNow`."""

    def __init__(self, units: Units, handlers: Handlers, clock: Clock) -> None:
        self._units = units
        self._handlers = handlers
        self._clock = clock

    def held(self, limit: int = MOST) -> list[dict[str, Any]]:
        """Studies that wait for a person, oldest first."""
        with self._units.read() as unit:
            return [_hold(hold) for hold in unit.holds(limit)]

    def release(self, study_instance_uid: str) -> None:
        """Report a held study."""
        self._decide(study_instance_uid, self._handlers.release, "released")

    def decline(self, study_instance_uid: str) -> None:
        """No report for a held study."""
        self._decide(study_instance_uid, self._handlers.decline, "declined")

    def failed(self, limit: int = MOST) -> list[dict[str, Any]]:
        """Jobs that ended without a report, newest first."""
        with self._units.read() as unit:
            return [_job(job) for job in unit.failed_jobs(limit)]

    def replay(self, job_id: str) -> None:
        """Try a failed job again."""
        why = "the job has not failed, or its study has a newer version"
        self._on_job(job_id, self._handlers.replay, "replayed", why)

    def discard(self, job_id: str) -> None:
        """Give a failed job up."""
        self._on_job(job_id, self._handlers.discard, "discarded", "the job has not failed")

    def expedite(self, job_id: str) -> None:
        """Move a waiting job to the urgent queue."""
        self._on_job(job_id, self._handlers.expedite, "expedited", "the job is not waiting, or is urgent already")

    def letters(self, limit: int = MOST) -> list[dict[str, Any]]:
        """Events that this service gave up, newest first."""
        with self._units.read() as unit:
            return [_letter(letter) for letter in unit.letters(limit)]

    def replay_letter(self, letter_id: str) -> None:
        """Publish the event again under its own id: whoever has handled it passes over it."""
        with self._units.write() as unit:
            letter = self._waiting(unit, letter_id)
            try:
                event = Event.from_bytes(letter.value)
            except InvalidEvent as error:
                raise NotNow("the event cannot be read; publish a right one and discard this") from error
            unit.publish(event)
            unit.save_letter(replace(letter, state="replayed"))
        log.info("dead letter replayed", extra={"letter": letter_id})

    def discard_letter(self, letter_id: str) -> None:
        """Give the event up for good."""
        with self._units.write() as unit:
            unit.save_letter(replace(self._waiting(unit, letter_id), state="discarded"))
        log.info("dead letter discarded", extra={"letter": letter_id})

    def paused(self) -> dict[str, Any] | None:
        """The pause that holds now."""
        with self._units.read() as unit:
            pause = unit.pause()
        return None if pause is None else {"since": iso(pause.since), "reason": pause.reason}

    def pause(self, reason: str) -> None:
        """Hand over no more jobs; those that workers have are finished. Survives restarts."""
        with self._units.write() as unit:
            unit.set_pause(unit.pause() or Pause(self._clock.now(), reason))
        log.warning("paused")

    def resume(self) -> None:
        """Go on."""
        with self._units.write() as unit:
            unit.set_pause(None)
        log.warning("resumed")

    def _decide(self, uid: str, use_case: Callable[[Unit, Hold], bool], done: str) -> None:
        with self._units.write() as unit:
            hold = unit.hold(uid)
            if hold is None:
                raise Unknown("no such study is held")
            if not use_case(unit, hold):
                raise NotNow(f"the study does not wait any more: it was {hold.state}")
        log.info("decision", extra={"study": study_ref(uid), "decision": done})

    def _on_job(self, job_id: str, use_case: Callable[[Unit, Job], bool], done: str, why_not: str) -> None:
        with self._units.write() as unit:
            job = unit.job(job_id)
            if job is None:
                raise Unknown("no such job")
            if not use_case(unit, job):
                raise NotNow(f"{why_not}; it is {job.state}")
        log.info("decision", extra={"job_id": job_id, "decision": done})

    @staticmethod
    def _waiting(unit: Unit, letter_id: str) -> Letter:
        letter = unit.letter(letter_id)
        if letter is None:
            raise Unknown("no such dead letter")
        if letter.state != "waiting":
            raise NotNow(f"the dead letter was {letter.state} before")
        return letter


def _hold(hold: Hold) -> dict[str, Any]:
    return {
        "study_instance_uid": hold.study_instance_uid,
        "study_version": hold.study_version,
        "reason": {"code": hold.codes[0], "text": hold.text},
        "codes": list(hold.codes),
        "evidence": list(hold.evidence),
        "priority": hold.priority,
        "site": hold.site,
        "images": len(hold.images),
        "held_at": iso(hold.held_at),
    }


def _job(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "study_instance_uid": job.study_instance_uid,
        "study_version": job.study_version,
        "model_version": job.model_version,
        "state": job.state,
        "reason": {"code": job.error_code, "text": job.error_text},
        "priority": job.priority,
        "site": job.site,
        "attempt": job.attempt,
        "starts": job.starts,
        "finished_at": iso(job.finished_at) if job.finished_at else None,
    }


def _letter(letter: Letter) -> dict[str, Any]:
    return {
        "letter_id": letter.letter_id,
        "at": iso(letter.at),
        "topic": letter.topic,
        "study_instance_uid": letter.key,
        "error_code": letter.error_code,
        "attempts": letter.attempts,
    }
