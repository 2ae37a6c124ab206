"""Addresses, folders and the command line of scripts/services.sh, without any server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from servers import env

SCRIPT = env.REPOSITORY / "scripts" / "services.sh"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("ECHO_TEST_", "ECHO_CXR_"))]:
        monkeypatch.delenv(name)


def test_a_port_moves_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert env.kafka_bootstrap() == "127.0.0.1:29092"
    monkeypatch.setenv("ECHO_TEST_KAFKA_PORT", "19092")
    assert env.kafka_bootstrap() == "127.0.0.1:19092"


def test_an_address_wins_over_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHO_TEST_REDIS_PORT", "1")
    monkeypatch.setenv("ECHO_TEST_REDIS_URL", "redis://cache.test:7000")
    assert env.redis_url() == "redis://cache.test:7000"


def test_no_default_port_is_one_of_the_distribution_or_of_outgoing_connections() -> None:
    names = ["POSTGRES", "REDIS", "HAPI", "ORTHANC_HTTP", "ORTHANC_DICOM"]
    names += ["KAFKA", "KAFKA_CONTROLLER", "KAFKA_PROXIED", "KAFKA_PROXY"]
    ports = {env.port(name) for name in names}
    assert len(ports) == len(names)
    assert not ports & {5432, 6379, 9092, 8080, 8042, 4242}
    assert max(ports) < 32768


def test_data_stay_in_the_repository_or_where_they_are_told_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert env.services_dir() == env.REPOSITORY / ".services"
    monkeypatch.setenv("ECHO_CXR_SERVICES_DIR", str(tmp_path / "elsewhere"))
    assert env.services_dir() == tmp_path / "elsewhere"


def test_root_keeps_data_where_the_database_user_can_reach_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    monkeypatch.setenv("ECHO_CXR_SERVICES_DIR", str(closed / "services"))
    chosen = env.services_dir()
    assert not chosen.is_relative_to(tmp_path)
    assert all(parent.stat().st_mode & 0o001 for parent in chosen.parents)
    assert env.services_dir() == chosen, "the same folder every time"


def test_a_changed_launcher_is_built_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(Path(env.__file__).parent / "validator", tmp_path / "servers" / "validator")
    monkeypatch.setattr(env, "__file__", str(tmp_path / "servers" / "env.py"))
    before = env.java_dir("validator")
    assert before == env.java_dir("validator")
    assert before.is_relative_to(tmp_path / "cache" / "echo-cxr")
    source = next((tmp_path / "servers" / "validator").rglob("*.java"))
    source.write_text(source.read_text() + "\n")
    assert env.java_dir("validator") != before
    assert env.validator_class_path() is None


@pytest.mark.parametrize("arguments", [[], ["begin"], ["start", "oracle"]])
def test_a_wrong_command_shows_the_usage(arguments: list[str]) -> None:
    result = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("usage:")


def test_env_prints_lines_for_the_shell() -> None:
    script = f'eval "$({SCRIPT} env)" && echo "$ECHO_TEST_HAPI_URL"'
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "http://127.0.0.1:28080/fhir"


def test_an_activated_environment_does_not_pass_for_dcmtk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = sysconfig.get_path("scripts")
    assert shutil.which("storescu", path=own), "pynetdicom brings one"
    monkeypatch.setenv("PATH", own)
    assert env.tool("storescu") is None
    (tmp_path / "storescu").touch(0o755)
    monkeypatch.setenv("PATH", f"{own}{os.pathsep}{tmp_path}")
    assert env.tool("storescu") == str(tmp_path / "storescu")
