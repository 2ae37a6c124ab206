"""What every test may ask for: the real servers, and nothing that starts them.

A test that talks to a server says so, `@pytest.mark.needs("kafka", "postgres")`, or takes one of the fixtures below,
which implies it. Where the server is absent the test is skipped with the way to start it; with REQUIRE_SERVICES=1,
as in continuous integration, no integration test may be skipped for any reason: a skip counts as a failure.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from servers import env, ports, probe
from servers.databases import kafka_topics_removed, postgres_database, redis_database

REQUIRE_SERVICES = os.environ.get("REQUIRE_SERVICES") == "1"
INTEGRATION_FOLDERS = frozenset({"contract", "integration", "e2e", "k8s", "browser"})

ANSWERS_S = 120.0
"""How long a server that is there may take to answer."""
RERUN_FOLDERS = frozenset({"e2e", "browser", "integration"})
SERVER_FIXTURES = frozenset(
    {"postgres_url", "new_postgres_url", "module_postgres_url", "redis_url", "kafka_bootstrap", "hapi_url", "orthanc"}
)

# --- servers that must be there ---------------------------------------------------------------------------------


@functools.cache
def _absent(server: str) -> str | None:
    """Why `server` cannot be used, asked once per run; None when it answers."""
    if server not in probe.PROBES:
        raise pytest.UsageError(f"needs({server!r}): no such server; known are {', '.join(probe.PROBES)}")
    deadline = time.monotonic() + ANSWERS_S
    while True:
        try:
            probe.check(server)
        except probe.NotReady as problem:
            slow = isinstance(problem.__cause__, TimeoutError)  # it takes connections: all its tests hang on the answer
            if slow and time.monotonic() < deadline:
                continue
            return f"{server} is not there ({problem}); run `make services`"
        return None


def require(*servers: str) -> None:
    """Skip the test, or fail it under REQUIRE_SERVICES=1, unless all `servers` answer."""
    for server in servers:
        reason = _absent(server)
        if reason is not None and REQUIRE_SERVICES:
            pytest.fail(reason, pytrace=False)
        if reason is not None:
            pytest.skip(reason)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Look for the servers of `needs` before any fixture is set up."""
    for marker in item.iter_markers("needs"):
        require(*marker.args)


def _is_integration(path: Path) -> bool:
    below = path.relative_to(Path(__file__).parent).parts if path.is_relative_to(Path(__file__).parent) else ()
    return bool(below) and below[0] in INTEGRATION_FOLDERS


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under REQUIRE_SERVICES=1: a skipped integration test has failed."""
    report = yield
    expected_failure = hasattr(report, "wasxfail")  # pytest reports these as skipped, too
    integration = _is_integration(item.path) or item.get_closest_marker("needs") is not None
    if REQUIRE_SERVICES and report.skipped and integration and not expected_failure:
        report.outcome = "failed"
        report.longrepr = f"skipped, which REQUIRE_SERVICES=1 does not allow: {_reason(report.longrepr)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a file that skips itself while it is imported."""
    report = yield
    if REQUIRE_SERVICES and report.skipped and _is_integration(collector.path):
        report.outcome = "failed"
        report.longrepr = f"skipped, which REQUIRE_SERVICES=1 does not allow: {_reason(report.longrepr)}"
    return report


def _reason(longrepr: object) -> str:
    return str(longrepr[-1] if isinstance(longrepr, tuple) else longrepr)


# --- a second try for tests on real servers ---------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With RERUN_SERVER_TESTS=1 a failed test on real servers or whole processes runs once more.

    A safety net for a machine that stands still for a minute, not an excuse: the summary names each of them.
    """
    if os.environ.get("RERUN_SERVER_TESTS") != "1":
        return
    for item in items:
        whole = any(item.path.is_relative_to(Path(__file__).parent / folder) for folder in RERUN_FOLDERS)
        fixtures = getattr(item, "fixturenames", ())
        if whole or item.get_closest_marker("needs") or SERVER_FIXTURES.intersection(fixtures):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what did not pass the first time, with its first failure, at the very end."""
    reruns = terminalreporter.getreports("rerun")
    if reruns:
        terminalreporter.section(f"{len(reruns)} RERUN: these tests failed once and need a look", red=True)
        for report in reruns:
            terminalreporter.write_line(f"RERUN {report.nodeid} ({report.when}):")
            lines = report.longreprtext.strip().splitlines()
            for line in [*[each for each in lines if each.startswith("E ")][-40:], lines[-1]]:
                terminalreporter.write_line(f"    {line[:500]}")


# --- addresses and room of one's own on each server -------------------------------------------------------------


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """A new, empty PostgreSQL database for this test, as SQLAlchemy writes it; dropped afterwards."""
    require("postgres")
    with postgres_database() as url:
        yield url


@pytest.fixture
def new_postgres_url() -> Iterator[Callable[[], str]]:
    """As `postgres_url`, for a test that needs several: each call makes one more."""
    require("postgres")
    with contextlib.ExitStack() as databases:
        yield lambda: databases.enter_context(postgres_database())


@pytest.fixture(scope="module")
def module_postgres_url() -> Iterator[str]:
    """A new, empty PostgreSQL database for all tests of one file."""
    require("postgres")
    with postgres_database() as url:
        yield url


@pytest.fixture
def redis_url() -> Iterator[str]:
    """An empty Redis database of this test's own, with its number in the address."""
    require("redis")
    with redis_database() as url:
        yield url


@pytest.fixture
def kafka_bootstrap() -> str:
    """`host:port` of the Kafka broker. Take unique topic and group names: see `kafka_prefix`."""
    require("kafka")
    return env.kafka_bootstrap()


@pytest.fixture
def kafka_prefix(kafka_bootstrap: str) -> Iterator[str]:
    """A prefix for this test's topics; topics that start with it are deleted afterwards."""
    with kafka_topics_removed(kafka_bootstrap) as prefix:
        yield prefix


@pytest.fixture
def hapi_url() -> str:
    """Base address of the strict FHIR R4 server. Its data stay: use identifiers of your own (`unique`)."""
    require("hapi")
    return env.hapi_url()


@dataclass(frozen=True)
class OrthancAddress:
    """The archive: REST at `url`, DICOM at `host`:`dicom_port` as `aet`."""

    url: str
    host: str
    dicom_port: int
    aet: str


@pytest.fixture
def orthanc() -> OrthancAddress:
    """The Orthanc archive. It forwards what it receives to every modality whose name starts with "auto-"."""
    require("orthanc")
    return OrthancAddress(env.orthanc_url(), "127.0.0.1", env.port("ORTHANC_DICOM"), env.orthanc_aet())


@pytest.fixture
def dcmtk() -> Callable[[str], str]:
    """Path of one of dcmtk's programs by name: `dcmtk("storescu")`."""
    require("dcmtk")

    def path_of(program: str) -> str:
        found = env.tool(program)
        assert found is not None, f"dcmtk has no {program}"
        return found

    return path_of


@pytest.fixture
def chromium() -> str:
    """Path of a Chromium for Playwright's `executable_path`."""
    require("chromium")
    found = env.chromium()
    assert found is not None
    return found


@pytest.fixture
def services() -> Callable[..., None]:
    """`services("kill", "kafka")`: run scripts/services.sh, for tests that crash a server and start it again."""

    def run(*arguments: str) -> None:
        subprocess.run([str(env.REPOSITORY / "scripts" / "services.sh"), *arguments], check=True, timeout=1200)

    return run


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Each call gives a port on which nobody listens now."""
    return ports.free_port


@pytest.fixture
def unique() -> str:
    """A word that no other test run has used: for identifiers on servers that keep their data."""
    return uuid.uuid4().hex[:12]
