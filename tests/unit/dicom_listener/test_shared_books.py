"""What receiving processes share: limits, keys under way, counts."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading

import pytest
from prometheus_client import REGISTRY

from dicom_listener import metrics
from dicom_listener.adapters.key_locks import KeyLocks
from dicom_listener.domain.access import TurnedAway
from dicom_listener.handlers.limits import AssociationLimits


class Assoc:
    def __init__(self) -> None:
        self.alive = True

    def is_alive(self) -> bool:
        return self.alive


def test_limits() -> None:
    limits = AssociationLimits(3, 2)
    one, two, three, four = (Assoc() for _ in range(4))
    assert limits.admit(one, "10.0.0.1") is None
    assert limits.admit(two, "10.0.0.1") is None
    assert limits.admit(three, "10.0.0.1") is TurnedAway.TOO_MANY_OF_PEER
    assert limits.admit(three, "10.0.0.2") is None
    assert limits.admit(four, "10.0.0.3") is TurnedAway.TOO_MANY
    limits.leave(one)
    limits.leave(one)
    assert limits.admit(four, "10.0.0.1") is None
    two.alive = False  # it ended without saying so
    assert limits.admit(one, "10.0.0.1") is None


def test_a_key_is_kept_by_as_many_as_like_and_then_not_free() -> None:
    keys = KeyLocks()
    with keys.keeping("a"):
        with keys.keeping("a"), keys.unless_kept("a") as free, keys.unless_kept("b") as other:
            assert (free, other) == (False, True)
        with keys.unless_kept("a") as free:
            assert not free
    with keys.unless_kept("a") as free:
        assert free


def test_nobody_begins_to_keep_a_key_that_is_being_deleted() -> None:
    keys, kept = KeyLocks(), threading.Event()

    def keep() -> None:
        with keys.keeping("a"):
            kept.set()

    with keys.unless_kept("a") as free:
        assert free
        keeping = threading.Thread(target=keep)
        keeping.start()
        assert not kept.wait(0.1)
    keeping.join()
    assert kept.is_set()


def test_a_key_is_kept_by_another_process_until_that_dies() -> None:
    keys = KeyLocks()
    kept, told = os.pipe()
    ends, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(end)
            with keys.keeping("a"):
                os.write(told, b"x")
                os.read(ends, 1)  # until the other side closes
                os._exit(0)
        finally:  # whatever went wrong, this process must not go on with the tests
            os._exit(1)
    os.close(told)
    try:
        assert os.read(kept, 1) == b"x"
        with keys.unless_kept("a") as free:
            assert not free
    finally:
        os.close(end)
        os.waitpid(pid, 0)
    with keys.unless_kept("a") as free:
        assert free
    for descriptor in (kept, ends):
        os.close(descriptor)


def test_counts_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    tally = metrics.Tally()
    before = (
        value("echo_dicom_objects_total", status="A700"),
        value("echo_dicom_received_bytes_total"),
        value("echo_dicom_store_seconds_sum"),
    )
    with monkeypatch.context() as there:
        for name in ("ASSOCIATIONS", "OBJECTS", "RECORDED", "BYTES", "STORE_SECONDS"):
            there.setattr(metrics, name, getattr(metrics, name))  # as it was, afterwards
        tally.use()
        metrics.OBJECTS.labels(status="A700").inc()
        metrics.OBJECTS.labels(status="A700").inc()
        metrics.BYTES.inc(12)
        metrics.STORE_SECONDS.observe(0.5)
        metrics.STORE_SECONDS.observe(0.75)
    metrics.add(pickle.loads(pickle.dumps(tally.take())))  # noqa: S301  # our own
    assert tally.take() == {}
    after = (
        value("echo_dicom_objects_total", status="A700"),
        value("echo_dicom_received_bytes_total"),
        value("echo_dicom_store_seconds_sum"),
    )
    assert after == pytest.approx((before[0] + 2, before[1] + 12, before[2] + 1.25))


def test_a_receiving_process_does_not_outlive_the_threads_that_it_needs() -> None:
    program = "\n".join(
        (
            "import threading, time",
            "from dicom_listener.receiving import _die_with",
            "threading.Thread(target=_die_with, args=(lambda: 1 // 0,)).start()",
            "time.sleep(100)",
        )
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=90, check=False).returncode == 1
