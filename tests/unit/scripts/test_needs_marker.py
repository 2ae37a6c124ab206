"""tests/conftest.py skips what cannot run, and forbids that where everything must run."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from servers import env

TESTS = """
import pytest

@pytest.mark.needs("redis")
def test_needs_an_absent_server():
    pass

def test_fixture_of_an_absent_server(redis_url):
    pass

def test_skips_itself():
    pytest.skip("not today")

@pytest.mark.xfail(strict=True)
def test_fails_as_expected():
    assert False

def test_passes():
    pass
"""

MODULE = """
import pytest

pytest.importorskip("there_is_no_such_module")
"""


def outcomes(folder: Path, **variables: str) -> dict[str, str]:
    """Run the tests above with no Redis at hand: test name -> passed, skipped or failed."""
    run(folder, {"integration/test_some.py": TESTS, "integration/test_module.py": MODULE}, variables)
    result = {}
    for case in ElementTree.parse(folder / "report.xml").iter("testcase"):
        kinds = {child.tag for child in case} - {"system-out", "system-err"}
        result[case.get("name") or case.get("classname") or ""] = kinds.pop() if kinds else "passed"
    return result


def run(folder: Path, files: dict[str, str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """pytest as this project configures it, over `files` (path below tests -> content)."""
    tests = folder / "tests"
    for part, text in files.items():
        (tests / part).parent.mkdir(parents=True, exist_ok=True)
        (tests / part).write_text(text)
    shutil.copy(env.REPOSITORY / "tests" / "conftest.py", tests)
    shutil.copy(env.REPOSITORY / "pyproject.toml", folder)
    report = folder / "report.xml"
    switches = ("REQUIRE_SERVICES", "RERUN_SERVER_TESTS")
    environment = {name: value for name, value in os.environ.items() if name not in switches}
    environment |= {"ECHO_TEST_REDIS_URL": "redis://127.0.0.1:1", "PYTHONPATH": str(env.REPOSITORY / "tests")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # most of a short run's time otherwise
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
    command += ["-p", "pytest_rerunfailures"]
    command += ["--continue-on-collection-errors", f"--junit-xml={report}", str(tests)]
    return subprocess.run(
        command, cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_absent_servers_skip_tests_unless_all_are_required(tmp_path: Path) -> None:
    usual = outcomes(tmp_path / "usual")
    skipped = {
        "test_needs_an_absent_server",
        "test_fixture_of_an_absent_server",
        "test_skips_itself",
        "test_fails_as_expected",
        "tests.integration.test_module",
    }
    assert {name for name, kind in usual.items() if kind == "skipped"} == skipped
    assert usual["test_passes"] == "passed"

    required = outcomes(tmp_path / "required", REQUIRE_SERVICES="1")
    broken = {name for name, kind in required.items() if kind in ("failure", "error")}
    assert broken == skipped - {"test_fails_as_expected"}
    assert required["test_passes"] == "passed"


NEEDS = """
import pytest

@pytest.mark.needs("redis")
def test_needs_a_slow_server():
    pass
"""


@pytest.mark.slow
def test_a_server_that_is_slow_to_answer_is_asked_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_the_second_time() -> None:
            first, _ = server.accept()
            second, _ = server.accept()
            with first, second:
                second.recv(100)
                second.sendall(b"+PONG\r\n")

        threading.Thread(target=answer_the_second_time, daemon=True).start()
        impatient = "from servers import probe\n\nprobe.ANSWER_S = 0.2\n"
        files = {"integration/conftest.py": impatient, "integration/test_slow.py": NEEDS}
        url = f"redis://127.0.0.1:{server.getsockname()[1]}"
        done = run(tmp_path, files, {"ECHO_TEST_REDIS_URL": url, "REQUIRE_SERVICES": "1"})
        assert "1 passed" in done.stdout, done.stdout


FLAKY = """
from pathlib import Path

def test_fails_the_first_time():
    mark = Path(__file__).with_name("been-here")
    if not mark.exists():
        mark.touch()
        raise RuntimeError("only the first time")
"""


@pytest.mark.slow
def test_only_tests_on_servers_run_again_and_the_summary_names_them(tmp_path: Path) -> None:
    files = {"e2e/test_whole.py": FLAKY, "unit/test_part.py": FLAKY}
    again = run(tmp_path / "again", files, {"RERUN_SERVER_TESTS": "1"})
    assert again.returncode == 1
    assert "1 RERUN: these tests failed once" in again.stdout
    assert "RERUN tests/e2e/test_whole.py::test_fails_the_first_time (call):" in again.stdout
    assert "1 failed, 1 passed, 1 rerun" in again.stdout
    usual = run(tmp_path / "usual", files, {})
    assert "2 failed" in usual.stdout
