"""The life of a job over late, repeated and missing events."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from dispatcher.domain import jobs
from dispatcher.domain.jobs import Change, Job, Limits

NOW = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
LIMITS = Limits()


def queued() -> Job:
    return jobs.created("1.2.3", 1, "default", "routine", [], NOW, LIMITS).job


def sure(change: Change | None) -> Change:
    assert change is not None
    return change


def running(starts: int = 1) -> Job:
    return replace(sure(jobs.started(queued(), 1, NOW, LIMITS)).job, starts=starts)


def test_the_same_version_and_model_is_the_same_job() -> None:
    assert queued().job_id == queued().job_id
    assert len({jobs.job_id("1.2.3", v, m) for v in (1, 2) for m in ("a", "b")}) == 4


def test_the_usual_way() -> None:
    begun = sure(jobs.started(queued(), 1, NOW, LIMITS)).job
    assert (begun.state, begun.starts, begun.deadline_at) == ("running", 1, NOW + LIMITS.run_deadline)
    done = sure(jobs.generated(begun, NOW))
    assert (done.job.state, done.withdraw, done.announce_failure) == ("done", 1, False)
    assert jobs.generated(done.job, NOW) is None
    assert jobs.started(done.job, 1, NOW, LIMITS) is None
    assert jobs.failed(done.job, 1, "internal_error", "", True, NOW, LIMITS) is None


def test_a_fault_of_the_study_is_final_and_told_by_the_worker_alone() -> None:
    change = sure(jobs.failed(running(), 1, "not_dicom", "text", False, NOW, LIMITS))
    assert (change.job.state, change.job.error_code) == ("failed", "not_dicom")
    assert not change.announce_failure
    assert not change.enqueue


def test_other_failures_are_tried_again_later_each_time() -> None:
    first = sure(jobs.failed(running(), 1, "internal_error", "", True, NOW, LIMITS))
    assert first.enqueue
    assert first.withdraw == 1
    assert (first.job.state, first.job.attempt, first.job.queued_at) == ("queued", 2, NOW + timedelta(seconds=5))
    begun = sure(jobs.started(first.job, 2, NOW, LIMITS)).job
    second = sure(jobs.failed(begun, 2, "internal_error", "", True, NOW, LIMITS))
    assert second.job.queued_at == NOW + timedelta(seconds=10)
    begun = sure(jobs.started(second.job, 3, NOW, LIMITS)).job
    last = sure(jobs.failed(begun, 3, "internal_error", "", True, NOW, LIMITS))
    assert (last.job.state, last.job.error_code, last.announce_failure) == ("failed", jobs.EXHAUSTED, True)
    assert not last.enqueue


def test_a_failure_whose_start_was_not_heard_counts_as_well() -> None:
    job = queued()
    for attempt in (1, 2):
        job = sure(jobs.failed(job, attempt, "internal_error", "", True, NOW, LIMITS)).job
    assert sure(jobs.failed(job, 3, "internal_error", "", True, NOW, LIMITS)).announce_failure


def test_words_of_an_attempt_that_was_given_up() -> None:
    again = sure(jobs.overdue(running(), True, NOW + LIMITS.run_deadline, LIMITS)).job
    assert again.attempt == 2
    assert jobs.started(again, 1, NOW, LIMITS) is None
    assert jobs.failed(again, 1, "internal_error", "", True, NOW, LIMITS) is None
    assert sure(jobs.generated(again, NOW)).job.state == "done"
    # What is wrong with the study itself is as wrong in the next attempt.
    assert sure(jobs.failed(again, 1, "not_dicom", "", False, NOW, LIMITS)).job.state == "failed"


def test_a_report_that_comes_after_giving_up_counts() -> None:
    given_up = replace(running(), state="failed")
    assert sure(jobs.generated(given_up, NOW)).job.state == "done"


def test_one_start_too_many_ends_a_job_that_kills_its_worker() -> None:
    job = queued()
    for _ in range(3):  # the broker gives the same attempt again each time
        job = sure(jobs.started(job, 1, NOW, LIMITS)).job
        assert job.state == "running"
    change = sure(jobs.started(job, 1, NOW, LIMITS))
    assert (change.job.state, change.job.error_code, change.withdraw) == ("failed", jobs.EXHAUSTED, 1)
    assert change.announce_failure


def test_overdue_while_running() -> None:
    late = NOW + LIMITS.run_deadline
    assert jobs.overdue(running(), False, late - timedelta(seconds=1), LIMITS) is None
    again = sure(jobs.overdue(running(), False, late, LIMITS))
    assert again.enqueue
    assert again.job.attempt == 2
    assert again.job.starts == 1
    given_up = sure(jobs.overdue(running(starts=3), False, late, LIMITS))
    assert given_up.announce_failure
    assert not given_up.enqueue


def test_overdue_in_the_queue_costs_no_attempt() -> None:
    job, late = queued(), NOW + LIMITS.queue_deadline
    waiting = sure(jobs.overdue(job, False, late, LIMITS))
    assert not waiting.enqueue
    assert waiting.job.attempt == 1
    assert waiting.job.deadline_at > late
    for lost in range(20):  # a broker that forgets all again and again
        change = sure(jobs.overdue(job, True, job.deadline_at, LIMITS))
        assert change.enqueue
        assert change.withdraw == lost + 1
        job = change.job
    assert (job.state, job.attempt, job.starts) == ("queued", 21, 0)


def test_superseded() -> None:
    change = sure(jobs.superseded(running(), NOW))
    assert (change.job.state, change.withdraw) == ("superseded", 1)
    assert jobs.superseded(change.job, NOW) is None
    assert jobs.generated(change.job, NOW) is None
    assert jobs.overdue(change.job, True, NOW + timedelta(days=1), LIMITS) is None


def test_only_a_start_without_an_answer_makes_a_suspect() -> None:
    late = NOW + LIMITS.run_deadline
    lost = sure(jobs.overdue(queued(), True, late, LIMITS))
    answered = sure(jobs.failed(running(), 1, "deadline_exceeded", "", True, NOW, LIMITS))
    urgent = sure(jobs.expedited(queued(), NOW, LIMITS))
    final = replace(running(), state="failed", error_code="object_corrupt")
    silent = sure(jobs.overdue(running(), False, late, LIMITS))
    exhausted = replace(running(), state="failed", error_code=jobs.EXHAUSTED)
    changes = {
        "lost": lost,
        "answered": answered,
        "urgent": urgent,
        "replayed": sure(jobs.replayed(final, "default", NOW, LIMITS)),
        "silent": silent,
        "silent and lost": sure(jobs.overdue(silent.job, True, silent.job.deadline_at, LIMITS)),
        "silent and urgent": sure(jobs.expedited(silent.job, NOW, LIMITS)),
        "replayed after silence": sure(jobs.replayed(exhausted, "default", NOW, LIMITS)),
    }
    assert all(change.enqueue and change.job.attempt > 1 for change in changes.values())
    suspects = [name for name, change in changes.items() if change.suspect]
    assert suspects == ["silent", "silent and lost", "silent and urgent", "replayed after silence"]


def test_a_worker_of_another_model_version_costs_no_attempt_however_often() -> None:
    job, pauses = queued(), []
    for _ in range(60):
        change = sure(jobs.handed_back(job, job.attempt, "default", NOW, LIMITS))
        assert (change.enqueue, change.suspect, change.withdraw) == (True, False, job.attempt)
        pauses.append(change.job.queued_at - NOW)
        job = change.job
    assert (job.state, job.starts, job.attempt) == ("queued", 0, 61)
    assert pauses[:3] == [timedelta(seconds=5), timedelta(seconds=10), timedelta(seconds=20)]
    assert max(pauses) == LIMITS.run_deadline
    assert jobs.handed_back(job, 1, "default", NOW, LIMITS) is None
    begun = sure(jobs.started(job, 61, NOW, LIMITS)).job
    assert sure(jobs.handed_back(begun, 61, "default", NOW, LIMITS)).suspect, "it came back from a worker that ended"


def test_the_pin_follows_the_site() -> None:
    pinned = replace(queued(), model_version="1")
    assert sure(jobs.handed_back(pinned, 1, "2", NOW, LIMITS)).job.model_version == "2"
    failed = replace(pinned, state="failed")
    again = sure(jobs.replayed(failed, "2", NOW, LIMITS)).job
    assert (again.model_version, again.job_id) == ("2", pinned.job_id)
