"""Settings: read once, checked, explained, masked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from pipeline.settings import (
    BusSettings,
    CommonSettings,
    DatabaseSettings,
    ObjectStoreSettings,
    describe,
    load_settings,
    masked,
)


class ExampleSettings(CommonSettings, DatabaseSettings, BusSettings, ObjectStoreSettings):
    """As services compose theirs."""

    quiet_seconds: float = Field(30.0, gt=0, le=3600, description="Time without a new object.")
    mode: Literal["a", "b"] = Field("a", description="Which one.")
    names: list[str] = Field(["x"], description="Some names.")


GOOD = {
    "ECHO_DATABASE_URL": "postgresql+psycopg://user:hunter2@host/name",
    "ECHO_BUS_URL": "postgresql+psycopg://user:hunter3@host/bus",
    "ECHO_OBJECT_STORE_URL": "file:///objects",
    "ECHO_KAFKA_PASSWORD": "hunter4",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        load_settings(ExampleSettings, "An example.", [])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_variables_have_the_prefix_wherever_a_field_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHO_HTTP_PORT", "1234")
    monkeypatch.setenv("HTTP_PORT", "4321")
    monkeypatch.setenv("ECHO_QUIET_SECONDS", "5")
    settings = load_settings(ExampleSettings, "An example.", [])
    assert (settings.http_port, settings.quiet_seconds) == (1234, 5.0)
    assert settings.bus_url == GOOD["ECHO_BUS_URL"]


def test_settings_are_frozen() -> None:
    settings = load_settings(ExampleSettings, "An example.", [])
    with pytest.raises(ValidationError):
        settings.http_port = 1  # type: ignore[misc]  # what this test is about


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("ECHO_HTTP_PORT", "http", "integer"),
        ("ECHO_HTTP_PORT", "70000", "65535"),
        ("ECHO_MODE", "c", "'a' or 'b'"),
        ("ECHO_QUIET_SECONDS", "0", "greater than 0"),
        ("ECHO_BUS_URL", "rabbit://host", "kafka://"),
        ("ECHO_OBJECT_STORE_URL", "/objects", "file:///"),
        ("ECHO_LOG_LEVEL", "loud", "'debug'"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(name, value)
    message = refused(capsys)
    assert f"wrong setting {name}: is {value!r}" in message
    assert allowed in message


def test_a_missing_setting_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("ECHO_BUS_URL")
    assert "wrong setting ECHO_BUS_URL: is not set" in refused(capsys)


def test_a_wrong_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ECHO_DATABASE_URL", "mysql://user:hunter2@host")
    message = refused(capsys)
    assert "wrong setting ECHO_DATABASE_URL" in message
    assert "postgresql+psycopg://" in message
    assert "hunter2" not in message


def test_a_list_that_is_not_json_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ECHO_NAMES", "[unfinished")
    assert "names" in refused(capsys)


def test_help_lists_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_settings(ExampleSettings, "An example.", ["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "An example." in text
    for env, _, _, description in describe(ExampleSettings):
        assert env in text
        assert description
        assert description in text


def test_rows_for_the_page_of_settings() -> None:
    rows = {env: (kind, default, text) for env, kind, default, text in describe(ExampleSettings)}
    assert rows["ECHO_QUIET_SECONDS"] == ("float, > 0, <= 3600", "30.0", "Time without a new object.")
    assert rows["ECHO_MODE"] == ("Literal['a', 'b']", "a", "Which one.")
    assert rows["ECHO_DATABASE_URL"][:2] == ("SecretStr", "required")
    assert rows["ECHO_KAFKA_USERNAME"][:2] == ("str | None", "none")


def test_secrets_are_masked_for_the_log() -> None:
    shown = masked(load_settings(ExampleSettings, "An example.", []))
    assert "hunter" not in str(shown)
    assert shown["bus_url"] == "postgresql+psycopg://***@host/bus"
    assert shown["http_port"] == 8080


def test_the_page_of_settings_is_current() -> None:
    script = Path(__file__).parents[3] / "scripts" / "gen_settings_docs.py"
    done = subprocess.run([sys.executable, str(script), "--check"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
