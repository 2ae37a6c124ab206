"""A wrong setting ends the start with a message that names it; secrets are never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from fhir_writer.settings import Settings
from pipeline.settings import load_settings, masked

GOOD = {
    "ECHO_DATABASE_URL": "sqlite:////tmp/x.sqlite3",
    "ECHO_BUS_URL": "sqlite:////tmp/b.sqlite3",
    "ECHO_FHIR_BASE_URL": "https://ehr.test/fhir/",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_good_settings(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ECHO_FHIR_PATIENT_SYSTEMS", '{"HOSPITAL": "urn:oid:2.25.1"}')
    settings = load_settings(Settings, "", [])
    assert settings.fhir_base_url == "https://ehr.test/fhir"
    assert settings.fhir_patient_systems == {"HOSPITAL": "urn:oid:2.25.1"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FHIR_BASE_URL", "ehr.test/fhir"),
        ("FHIR_BASE_URL", "ftp://ehr.test"),
        ("FHIR_BASE_URL", "https://u:p@ehr.test/fhir"),
        ("FHIR_BASE_URL", "https://ehr.test/fhir?x=1"),
        ("FHIR_AUTH", "bearer"),
        ("FHIR_AUTH", "magic"),
        ("FHIR_VERIFY_TLS", "false"),
        ("FHIR_CA_FILE", "/no/such/file.pem"),
        ("FHIR_TOKEN", "a\nb"),
        ("SITE_TIMEZONE", "Mars/Olympus"),
        ("FHIR_DEFAULT_PATIENT_SYSTEM", "mrn"),
        ("FHIR_PATIENT_SYSTEMS", '{"A": "b"}'),
        ("FHIR_REPORT_STATUS", "final"),
        ("DELIVERY_THREADS", "0"),
        ("OUT_OF_DOMAIN", "drop"),
    ],
)
def test_a_wrong_setting_is_named(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    environment.setenv(f"ECHO_{name}", value)
    with pytest.raises(SystemExit) as end:
        load_settings(Settings, "", [])
    assert end.value.code == 2
    assert f"wrong setting ECHO_{name}" in capsys.readouterr().err


def test_a_file_that_is_no_certificate_is_refused(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nothing")
    environment.setenv("ECHO_FHIR_CA_FILE", str(file))
    with pytest.raises(SystemExit):
        load_settings(Settings, "", [])


def test_tls_may_go_unchecked_on_loopback_only(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ECHO_FHIR_VERIFY_TLS", "false")
    environment.setenv("ECHO_FHIR_BASE_URL", "https://127.0.0.1:8443/fhir")
    assert load_settings(Settings, "", []).fhir_verify_tls is False


def test_secrets_are_masked(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ECHO_FHIR_TOKEN", "very-secret")
    environment.setenv("ECHO_FHIR_AUTH", "bearer")
    assert "very-secret" not in str(masked(load_settings(Settings, "", [])))
