"""UIDs, watermark, statuses, open associations, settings."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from dicom_listener.domain.refusals import Reason, Refused
from dicom_listener.domain.uids import is_uid
from dicom_listener.domain.watermark import Watermark
from dicom_listener.handlers.associations import Associations
from dicom_listener.handlers.receive import object_key
from dicom_listener.settings import Settings
from pipeline.settings import load_settings
from pipeline.store import check_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.2", "2.25.0", "0", "1." + "9" * 62])
def test_uids(uid: str) -> None:
    assert is_uid(uid)


@pytest.mark.parametrize(
    "text",
    ["", "../../etc/passwd", "1..2", ".1.2", "1.2.", "1.02", "1.2\n", "1.2 ", "1." + "9" * 63, "1.2\0", "1.٣", "a.b"],
)
def test_not_uids(text: str) -> None:
    assert not is_uid(text)


def test_watermark_has_hysteresis() -> None:
    watermark = Watermark(min_free_bytes=100, resume_free_bytes=200)
    answers = [watermark.allows(free) for free in (150, 100, 99, 100, 199, 200, 150, 99)]
    assert answers == [True, True, False, False, False, True, True, False]
    assert Watermark(100, 200).allows(None)


def test_only_what_cannot_be_understood_is_kept_in_quarantine() -> None:
    assert {reason for reason in Reason if reason.is_kept} == {
        Reason.UNREADABLE,
        Reason.TRUNCATED,
        Reason.TOO_DEEP,
        Reason.MISSING_UID,
        Reason.INVALID_UID,
    }
    assert Refused(Reason.MISSING_UID, "StudyInstanceUID").text().endswith("(StudyInstanceUID)")


def test_codes_are_unique() -> None:
    assert len({reason.code for reason in Reason}) == len(Reason)


def test_object_keys_are_made_of_the_hash() -> None:
    key = object_key("ab12" + "0" * 60)
    assert check_key(key) == "objects/ab/ab12" + "0" * 60 + ".dcm"


class Thread:
    def __init__(self) -> None:
        self.alive = True

    def is_alive(self) -> bool:
        return self.alive


def test_release_counts_when_the_last_association_has_ended() -> None:
    associations = Associations()
    first, second = Thread(), Thread()
    associations.carry(first, "1.2.3")
    associations.carry(second, "1.2.3")
    associations.end(first, NOW)
    assert associations.take_released() == {}
    assert associations.carried() == {"1.2.3"}
    associations.end(second, NOW)
    assert associations.take_released() == {"1.2.3": NOW}
    assert associations.take_released() == {}


def test_an_abort_is_no_release_and_a_dead_thread_carries_nothing() -> None:
    associations = Associations()
    first, second = Thread(), Thread()
    associations.carry(first, "1.2.3")
    associations.carry(second, "1.2.4")
    associations.end(first, None)
    second.alive = False
    assert associations.carried() == set()
    assert associations.take_released() == {}


def test_releases_that_could_not_be_written_come_again() -> None:
    associations = Associations()
    thread = Thread()
    associations.carry(thread, "1.2.3")
    associations.end(thread, NOW)
    taken = associations.take_released()
    associations.give_back(taken)
    assert associations.take_released() == {"1.2.3": NOW}


class Door:
    """A lock that lets somebody else in as soon as it is free."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.next: Callable[[], None] | None = None

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        following, self.next = self.next, None
        if following is not None:
            following()


def test_a_release_while_others_are_taken_is_not_lost() -> None:
    associations, thread, door = Associations(), Thread(), Door()
    associations.carry(thread, "1.2.3")
    associations._lock = door  # type: ignore[assignment]  # as good as a lock for this
    door.next = lambda: associations.end(thread, NOW)
    assert [*associations.take_released(), *associations.take_released()] == ["1.2.3"]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("ECHO_DATABASE_URL", "sqlite:////nowhere/listener.sqlite3")
    monkeypatch.setenv("ECHO_BUS_URL", "sqlite:////nowhere/bus.sqlite3")
    monkeypatch.setenv("ECHO_OBJECT_STORE_URL", "file:///nowhere/objects")
    return monkeypatch


@pytest.mark.parametrize("title", ["ECHO", "A", "WITH SPACE", "SIXTEEN CHARS OK"])
def test_ae_titles(environment: pytest.MonkeyPatch, title: str) -> None:
    environment.setenv("ECHO_AE_TITLE", title)
    assert load_settings(Settings, "", []).ae_title == title


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AE_TITLE", "TOO LONG A TITLE FOR IT"),
        ("AE_TITLE", "BACK\\SLASH"),
        ("AE_TITLE", "    "),
        ("AE_TITLE", "ÄÖ"),
        ("QUIET_SECONDS", "0"),
        ("DICOM_PORT", "70000"),
        ("RESUME_FREE_BYTES", "5"),
        ("DUPLICATE_POLICY", "guess"),
    ],
)
def test_wrong_settings_end_the_start(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    environment.setenv(f"ECHO_{name}", value)
    with pytest.raises(SystemExit) as caught:
        load_settings(Settings, "", [])
    assert caught.value.code == 2
    assert f"wrong setting ECHO_{name}: is {value!r}" in capsys.readouterr().err
