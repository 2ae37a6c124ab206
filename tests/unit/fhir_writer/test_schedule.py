"""Pauses, grace and the circuit breaker: no real time passes here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from fhir_writer.adapters.capability import unsuitable
from fhir_writer.adapters.fhir_http import diagnostics, retry_after
from fhir_writer.domain.schedule import CircuitBreaker, RetryPolicy

NOW = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("failures", "low", "high"), [(1, 0.5, 1), (2, 1, 2), (4, 4, 8), (9, 60, 120), (4000, 60, 120)]
)
def test_pauses_double_up_to_the_longest_with_jitter(failures: int, low: float, high: float) -> None:
    policy = RetryPolicy()
    assert policy.pause(failures, 0.0) == pytest.approx(low)
    assert policy.pause(failures, 0.999999) == pytest.approx(high, rel=1e-5)


def test_a_servers_wish_is_honoured_up_to_a_bound() -> None:
    policy = RetryPolicy()
    assert policy.pause(9, 0.0, 3.0) == 3.0
    assert policy.pause(1, 0.0, 10**9) == 3600.0
    assert policy.pause(1, 0.0, -5.0) == 0.0


def test_an_unknown_patient_is_looked_for_until_the_grace_is_over() -> None:
    policy, at, looks = RetryPolicy(patient_grace_s=7), NOW, 0
    while (again := policy.patient_retry(NOW, at)) is not None:
        assert at < again <= NOW + timedelta(seconds=7)
        at, looks = again, looks + 1
    assert (looks, at) == (4, NOW + timedelta(seconds=7))
    assert RetryPolicy(patient_grace_s=0).patient_retry(NOW, NOW) is None


def test_the_breaker_opens_probes_and_closes() -> None:
    breaker = CircuitBreaker(failures=3, open_s=10)
    for _ in range(2):
        breaker.failed(0)
    assert breaker.ask(0) == 0  # closed: everything may start
    breaker.failed(0)
    assert breaker.ask(4) == 6
    assert breaker.ask(10) == 0  # one probe
    assert breaker.ask(11) == 9  # and no second beside it
    breaker.failed(12)
    assert breaker.ask(13) == 9
    assert breaker.ask(22) == 0
    assert breaker.succeeded() is True
    assert breaker.ask(22) == breaker.ask(22) == 0
    assert breaker.succeeded() is False


def test_a_probe_that_never_reports_does_not_block_for_ever() -> None:
    breaker = CircuitBreaker(failures=1, open_s=10)
    breaker.failed(0)
    assert breaker.ask(10) == 0
    assert breaker.ask(20) == 0


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Mon, 05 Jan 2026 08:01:00 GMT", 60.0),
        ("Mon, 05 Jan 2026 07:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        (None, None),
        ("-3", None),
        ("9" * 30, None),
    ],
)
def test_retry_after_in_both_forms(header: str | None, expected: float | None) -> None:
    assert retry_after(header, NOW) == expected


def test_diagnostics_are_shortened_and_only_of_an_operation_outcome() -> None:
    issue = {"severity": "error", "code": "invalid", "diagnostics": "x" * 9000}
    text = diagnostics({"resourceType": "OperationOutcome", "issue": [issue]})
    assert text is not None
    assert len(text) == 2000
    assert diagnostics({"resourceType": "OperationOutcome", "issue": [{"details": {"text": "why"}}]}) == "?/?: why"
    assert diagnostics({"resourceType": "Bundle"}) is diagnostics(None) is diagnostics([1]) is None


@pytest.mark.parametrize(
    ("version", "interactions", "word"),
    [
        ("4.0.1", ["transaction"], None),
        ("4.0.1", ["batch"], "transactions"),
        ("5.0.0", ["transaction"], "5.0.0"),
        ("4.3.0", ["transaction"], "4.3.0"),
        (None, [], "not stated"),
    ],
)
def test_only_r4_with_transactions_fits(version: str | None, interactions: list[str], word: str | None) -> None:
    codes = [{"code": code} for code in interactions]
    statement = {"fhirVersion": version or "", "rest": [{"mode": "server", "interaction": codes}]}
    problem = unsuitable(statement)
    assert (problem is None) == (word is None)
    assert word is None or word in str(problem)
