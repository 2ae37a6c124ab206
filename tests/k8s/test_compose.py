"""The compose file fits the Compose specification and says what the code says."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {
    "dicom-listener": "dicom_listener",
    "dispatcher": "dispatcher",
    "inference-worker": "inference_worker",
    "fhir-writer": "fhir_writer",
    "console": "console",
}


def test_it_fits_the_compose_specification() -> None:
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        "docker-compose.yml",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", OURS)
def test_our_services_are_built_locked_down_and_set_as_the_code_wants(name: str) -> None:
    service, package = COMPOSE["services"][name], OURS[name]
    dockerfile = ROOT / service["build"]["dockerfile"]
    assert dockerfile == ROOT / "services" / package / "Dockerfile"
    text = dockerfile.read_text()
    assert f'ENTRYPOINT ["python", "-m", "{package}"]' in text
    assert "\nUSER 10001" in text
    assert "HEALTHCHECK" in text
    for copied in re.findall(r"^COPY (?!--from)(\S+) ", text, re.M):
        assert (ROOT / copied).exists(), copied
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    fields = importlib.import_module(f"{package}.settings").Settings.model_fields
    port = fields["http_port"].default
    assert f"ECHO_HTTP_PORT={port}" in text
    assert f"EXPOSE {port}" in text
    given = set(service["environment"])
    known = {"ECHO_" + field.upper() for field in fields}
    required = {"ECHO_" + field.upper() for field, info in fields.items() if info.is_required()}
    shared = set(COMPOSE["x-environment"])
    assert given - shared <= known, f"settings that {name} does not have: {given - shared - known}"
    assert required <= given, f"missing: {required - given}"


def test_no_image_floats() -> None:
    for name, service in COMPOSE["services"].items():
        tag = service["image"].rsplit(":", 1)[-1]
        assert re.search(r"\d+\.\d+", tag), f"{name}: {service['image']}"


def test_named_volumes_and_configs_exist() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"]
        for config in service.get("configs", []):
            assert config["source"] in COMPOSE["configs"]


def test_only_the_dicom_port_is_open_beyond_this_machine() -> None:
    open_ports = {
        name: [port for port in service.get("ports", []) if not str(port).startswith("127.0.0.1:")]
        for name, service in COMPOSE["services"].items()
    }
    assert {name: ports for name, ports in open_ports.items() if ports} == {
        "dicom-listener": ["${DICOM_PORT:-11112}:11112"]
    }


def test_every_database_that_a_service_uses_is_created() -> None:
    created = set(re.findall(r"CREATE DATABASE (\w+);", COMPOSE["configs"]["databases"]["content"]))
    used = {
        url.rsplit("/", 1)[1]
        for service in COMPOSE["services"].values()
        if (url := (service.get("environment") or {}).get("ECHO_DATABASE_URL"))
    }
    assert used == created


def test_the_worker_may_drain_as_long_as_it_needs() -> None:
    grace = int(COMPOSE["services"]["inference-worker"]["stop_grace_period"].removesuffix("s"))
    fields = importlib.import_module("inference_worker.settings").Settings.model_fields
    assert fields["watchdog_s"].default < grace
