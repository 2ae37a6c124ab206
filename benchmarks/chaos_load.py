"""The load of chaos: generated studies at random times from senders that behave like a PACS."""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx

from e2e.flow import Study, send
from fhir_writer.domain.codes import DEFAULT_PATIENT_SYSTEM
from servers import env

NO_ANSWER = 0xFFFF
"""What `send` tells of a rejected, lost or never established association."""
LATE_SHARE = 0.25
LATE_S = (12.0, 60.0)
"""A study is complete 5 s after its sender released the association, so this is a version of its own."""


@dataclass
class Sent:
    """A study as its sender knows it: times of Success by SOP Instance UID, seconds since 1970."""

    uid: str
    patient_id: str
    acknowledged: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrival:
    """A study to be sent at this time of the load; `late_s` after it, a second image."""

    at_s: float
    late_s: float | None


def arrivals(seed: int, sender: str, seconds: float, every_s: float) -> list[Arrival]:
    """The same for the same seed; the sender is late where it is held up, and then sends what has piled up."""
    rng, found, at = random.Random(f"{seed}{sender}"), [], 0.0
    while (at := at + rng.expovariate(1 / every_s)) < seconds:
        found.append(Arrival(at, rng.uniform(*LATE_S) if rng.random() < LATE_SHARE else None))
    return found


class Sender(threading.Thread):
    """One association an object, the same object again until it is taken."""

    def __init__(self, port: int, studies: list[tuple[Arrival, Study]], started: float, seed: str) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._begin = started
        self._rng = random.Random(seed)
        self._queue = [(arrival.at_s, number, arrival, study) for number, (arrival, study) in enumerate(studies)]
        heapq.heapify(self._queue)
        self.sent = {study.uid: Sent(study.uid, study.patient_id) for _, study in studies}
        self.attempts: Counter[int] = Counter()
        """By status."""

    def run(self) -> None:
        """Send everything; what is due when the load has ended is sent as well."""
        while self._queue:
            at, number, arrival, study = heapq.heappop(self._queue)
            time.sleep(max(0.0, self._begin + at - time.monotonic()))
            self._store(study)
            if at == arrival.at_s and arrival.late_s is not None:
                late = time.monotonic() - self._begin + arrival.late_s
                heapq.heappush(self._queue, (late, number, arrival, study))

    def _store(self, study: Study) -> None:
        image = study.image()
        while True:
            try:
                status = send(image, self._port)
            except (OSError, RuntimeError, ValueError):  # the association went away in the middle
                status = NO_ANSWER
            self.attempts[status] += 1
            if status == 0x0000:
                self.sent[study.uid].acknowledged[str(image.SOPInstanceUID)] = time.time()
                return
            time.sleep(self._rng.uniform(0.5, 3.0))


def register(studies: list[Study]) -> None:
    """Make all patients known to the EHR, as the hospital's registration does."""
    for start in range(0, len(studies), 50):
        entries = [
            {
                "resource": {
                    "resourceType": "Patient",
                    "identifier": [{"system": DEFAULT_PATIENT_SYSTEM, "value": study.patient_id}],
                    "birthDate": study.birth_date,
                    "gender": {"M": "male", "F": "female", "O": "other"}[study.sex],
                },
                "request": {"method": "POST", "url": "Patient"},
            }
            for study in studies[start : start + 50]
        ]
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
        httpx.post(env.hapi_url(), json=bundle, timeout=300).raise_for_status()
