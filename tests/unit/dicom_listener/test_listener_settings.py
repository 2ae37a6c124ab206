"""Settings that cannot work end the start with a sentence that names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_listener.assembly import server_tls
from dicom_listener.domain.access import AccessRule
from dicom_listener.settings import Settings
from pipeline.settings import load_settings


def settings(monkeypatch: pytest.MonkeyPatch, **chosen: object) -> Settings:
    for name in ("DATABASE_URL", "BUS_URL"):
        monkeypatch.setenv(f"ECHO_{name}", "sqlite:////nowhere/x.sqlite3")
    monkeypatch.setenv("ECHO_OBJECT_STORE_URL", "file:///nowhere")
    for name, value in chosen.items():
        monkeypatch.setenv(f"ECHO_{name.upper()}", str(value))
    return load_settings(Settings, "test", [])


def test_unusable_tls_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rubbish, missing = tmp_path / "rubbish.pem", tmp_path / "missing.pem"
    rubbish.write_text("no certificate")
    with pytest.raises(SystemExit, match="2"):
        server_tls(settings(monkeypatch, tls_certificate_file=missing, tls_key_file=rubbish))
    assert f"wrong setting ECHO_TLS_CERTIFICATE_FILE: is '{missing}'; No such file" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        server_tls(settings(monkeypatch, tls_certificate_file=rubbish, tls_key_file=rubbish))
    assert "are not a PEM certificate and its unencrypted private key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"tls_certificate_file": "x.pem"}, "ECHO_TLS_KEY_FILE"),
        ({"tls_key_file": "x.pem"}, "ECHO_TLS_KEY_FILE"),
        ({"tls_client_ca_file": "x.pem"}, "ECHO_TLS_CLIENT_CA_FILE"),
        ({"allowed_peers": '[{"called": "ECHO", "networks": ["10.0.0.300"]}]'}, "ECHO_ALLOWED_PEERS"),
        ({"allowed_peers": '[{"caled": "ECHO"}]'}, "ECHO_ALLOWED_PEERS"),
        ({"fetch_ae_title": "PACS"}, "ECHO_FETCH_AE_TITLE"),
        ({"fetch_dicomweb_url": "pacs.example"}, "ECHO_FETCH_DICOMWEB_URL"),
        ({"stow_token": "short"}, "ECHO_STOW_TOKEN"),
        ({"stow_port": "70000"}, "ECHO_STOW_PORT"),
        ({"min_free_bytes": "10", "resume_free_bytes": "5"}, "ECHO_RESUME_FREE_BYTES"),
    ],
)
def test_settings_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], chosen: dict[str, str], named: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        settings(monkeypatch, **chosen)
    assert f"wrong setting {named}" in capsys.readouterr().err


def test_the_allow_list_becomes_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(monkeypatch, allowed_peers='[{"calling": "PACS", "networks": ["10.1.0.0/16", "fd00::1"]}]')
    (rule,) = [peer.rule() for peer in chosen.allowed_peers]
    assert isinstance(rule, AccessRule)
    assert (rule.called, rule.calling, rule.has("10.1.9.9"), rule.has("fd00::1"), rule.has("10.2.0.1")) == (
        "*",
        "PACS",
        True,
        True,
        False,
    )


def test_one_archive_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    peers = '{"PACS": {"host": "pacs.example", "port": 104}}'
    assert settings(monkeypatch, known_peers=peers, fetch_ae_title="PACS").fetch_ae_title == "PACS"
    with pytest.raises(SystemExit, match="2"):
        settings(monkeypatch, fetch_dicomweb_url="https://pacs.example/dicom-web")
    assert "set either ECHO_FETCH_AE_TITLE or ECHO_FETCH_DICOMWEB_URL" in capsys.readouterr().err
