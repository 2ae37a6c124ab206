"""Where the real servers of the tests are: ports, addresses, folders. Standard library only.

This file is the one place that knows them: `scripts/services.sh` asks it (`python3 -m servers.env config`), and the
test fixtures import it. Every address can be set from outside, so the tests also run against servers started otherwise.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SERVERS = ("postgres", "redis", "kafka", "hapi", "orthanc")
TOOLS = ("dcmtk", "dicom3tools", "chromium", "validator")

_PORTS = {
    "POSTGRES": 25432,
    "REDIS": 26379,
    "KAFKA": 29092,
    "KAFKA_CONTROLLER": 29093,
    "KAFKA_PROXIED": 29094,
    "KAFKA_PROXY": 29095,
    "HAPI": 28080,
    "ORTHANC_HTTP": 28042,
    "ORTHANC_DICOM": 24242,
}
"""Far from the usual ones, where the distribution's own servers may already listen.

Kafka tells its clients where to connect to: at KAFKA_PROXIED it names KAFKA_PROXY, where a test may put a proxy.
"""

ORTHANC_AET = "ORTHANC"


def port(name: str) -> int:
    """The port of `name` (a key such as "KAFKA"): `ECHO_TEST_<name>_PORT`, else the default."""
    return int(os.environ.get(f"ECHO_TEST_{name}_PORT") or _PORTS[name])


def _address(variable: str, default: str) -> str:
    return os.environ.get(variable) or default


def postgres_url() -> str:
    """A maintenance database whose user may create others, as SQLAlchemy writes it."""
    default = f"postgresql+psycopg://echo@127.0.0.1:{port('POSTGRES')}/echo"
    return _address("ECHO_TEST_POSTGRES_URL", default)


def redis_url() -> str:
    """The server without a database number."""
    return _address("ECHO_TEST_REDIS_URL", f"redis://127.0.0.1:{port('REDIS')}")


def kafka_bootstrap() -> str:
    """`host:port` of one broker."""
    return _address("ECHO_TEST_KAFKA_BOOTSTRAP", f"127.0.0.1:{port('KAFKA')}")


def hapi_url() -> str:
    """The base address of the FHIR R4 service, without a slash at the end."""
    return _address("ECHO_TEST_HAPI_URL", f"http://127.0.0.1:{port('HAPI')}/fhir")


def orthanc_url() -> str:
    """Orthanc's REST interface, without a slash at the end."""
    return _address("ECHO_TEST_ORTHANC_URL", f"http://127.0.0.1:{port('ORTHANC_HTTP')}")


def orthanc_aet() -> str:
    """Orthanc's application entity title."""
    return _address("ECHO_TEST_ORTHANC_AET", ORTHANC_AET)


def tool(name: str) -> str | None:
    """The path of an installed program; Debian keeps some outside an ordinary user's search path.

    Programs of the Python environment do not count: in an activated one pynetdicom's storescu would pass for dcmtk's.
    """
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    own = sysconfig.get_path("scripts")
    return shutil.which(name, path=os.pathsep.join([*(folder for folder in folders if folder != own), "/usr/sbin"]))


def chromium() -> str | None:
    """A Chromium that Playwright can drive."""
    given = os.environ.get("ECHO_TEST_CHROMIUM")
    return given or tool("chromium") or tool("chromium-browser") or tool("google-chrome")


def cache_dir() -> Path:
    """What may be downloaded again: Maven's repository and the compiled launchers."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "echo-cxr"


def java_dir(name: str) -> Path:
    """Where the launcher `name` (kafka, hapi, validator) is built; another folder whenever its sources change."""
    digest = hashlib.sha256()
    folder = Path(__file__).resolve().parent / name
    for source in sorted(path for path in folder.rglob("*") if path.is_file() and "target" not in path.parts):
        digest.update(f"{source.relative_to(folder)}\0".encode())
        digest.update(source.read_bytes())
    return cache_dir() / "java" / f"{name}-{digest.hexdigest()[:12]}"


def validator_class_path() -> str | None:
    """The class path of the HL7 validator's launcher, if it has been built."""
    given = os.environ.get("ECHO_TEST_VALIDATOR_CP")
    if given:
        return given
    folder = java_dir("validator")
    if not (folder / "classpath").is_file():
        return None
    return f"{folder / 'classes'}:{(folder / 'classpath').read_text().strip()}"


def services_dir() -> Path:
    """The one folder with the servers' data, logs and process ids.

    PostgreSQL refuses to run as root and then runs as another user, who must be able to reach the folder; where a
    parent is closed to others (a repository below a private home), a folder of the same meaning in /var/tmp serves.
    """
    wanted = Path(os.environ.get("ECHO_CXR_SERVICES_DIR") or REPOSITORY / ".services").absolute()
    if os.geteuid() != 0 or all(not path.exists() or path.stat().st_mode & 0o001 for path in wanted.parents):
        return wanted
    base = Path("/var/tmp") if Path("/var/tmp").is_dir() else Path(tempfile.gettempdir())
    return base / f"echo-cxr-services-{hashlib.sha256(str(wanted).encode()).hexdigest()[:8]}"


def exports() -> dict[str, str]:
    """What `scripts/services.sh env` prints: every address as a test or a person at a shell may need it."""
    addresses = {
        "ECHO_TEST_POSTGRES_URL": postgres_url(),
        "ECHO_TEST_REDIS_URL": redis_url(),
        "ECHO_TEST_KAFKA_BOOTSTRAP": kafka_bootstrap(),
        "ECHO_TEST_HAPI_URL": hapi_url(),
        "ECHO_TEST_ORTHANC_URL": orthanc_url(),
        "ECHO_TEST_ORTHANC_DICOM_PORT": str(port("ORTHANC_DICOM")),
        "ECHO_TEST_ORTHANC_AET": orthanc_aet(),
        "ECHO_TEST_CHROMIUM": chromium() or "",
        "ECHO_TEST_VALIDATOR_CP": validator_class_path() or "",
    }
    return {name: value for name, value in addresses.items() if value}


def _config() -> dict[str, str]:
    """What `scripts/services.sh` evaluates when it starts."""
    return {
        "SERVICES_DIR": str(services_dir()),
        "CACHE_DIR": str(cache_dir()),
        "ORTHANC_AET": ORTHANC_AET,
        **{f"{name}_PORT": str(port(name)) for name in _PORTS},
        **{f"{name.upper()}_JAVA": str(java_dir(name)) for name in ("kafka", "hapi", "validator")},
    }


def main(arguments: list[str]) -> int:
    """`config` or `env`: shell lines to evaluate."""
    if arguments not in (["config"], ["env"]):
        print("usage: python3 -m servers.env config|env", file=sys.stderr)
        return 2
    prefix, values = ("export ", exports()) if arguments == ["env"] else ("", _config())
    for name, value in values.items():
        print(f"{prefix}{name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
