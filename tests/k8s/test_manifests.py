"""The manifests render, fit Kubernetes' schemas, and say what the code says."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

OVERLAYS = ["dev", "prod"]
SERVICES = {
    "dicom-listener": "dicom_listener",
    "dispatcher": "dispatcher",
    "inference-worker": "inference_worker",
    "fhir-writer": "fhir_writer",
    "console": "console",
}
VERSIONS = ["1.29", "1.32", "1.34"]

pytestmark = pytest.mark.skipif(
    not (shutil.which("kubectl") or shutil.which("kustomize")), reason="rendering needs kubectl or kustomize on PATH"
)


@cache
def documents(overlay: str) -> tuple[dict[str, Any], ...]:
    render = importlib.import_module("render")
    return tuple(yaml.safe_load_all(render.render(ROOT / "k8s" / "overlays" / overlay)))


def of_kind(overlay: str, kind: str) -> dict[str, dict[str, Any]]:
    return {d["metadata"]["name"]: d for d in documents(overlay) if d["kind"] == kind}


def container(overlay: str, name: str) -> dict[str, Any]:
    (only,) = of_kind(overlay, "Deployment")[name]["spec"]["template"]["spec"]["containers"]
    result: dict[str, Any] = only
    return result


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_fits_the_schema_of_kubernetes(overlay: str, version: str) -> None:
    for document in documents(overlay):
        if document["apiVersion"].startswith("keda.sh"):
            continue  # no Kubernetes schema: checked for its own rules below
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_service_has_all_its_objects(overlay: str) -> None:
    for kind in ("ServiceAccount", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"):
        assert set(SERVICES) <= set(of_kind(overlay, kind)), kind


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", SERVICES)
def test_pods_are_locked_down(overlay: str, name: str) -> None:
    pod = of_kind(overlay, "Deployment")[name]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    box = container(overlay, name)
    assert box["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in box["resources"]["limits"]
    assert {"cpu", "memory"} <= set(box["resources"]["requests"])
    assert re.fullmatch(r"echo-cxr/[a-z-]+:\d+\.\d+\.\d+", box["image"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert box[probe]["httpGet"]["port"] == "http"


@pytest.mark.parametrize("name", SERVICES)
def test_ports_and_settings_are_those_of_the_code(name: str) -> None:
    settings = importlib.import_module(f"{SERVICES[name]}.settings").Settings
    fields = settings.model_fields
    box = container("prod", name)
    ports = {port["name"]: port["containerPort"] for port in box["ports"]}
    assert ports["http"] == fields["http_port"].default
    if name == "dicom-listener":
        assert ports["dicom"] == fields["dicom_port"].default
    shared = of_kind("prod", "ConfigMap")["echo-cxr"]["data"]
    own = {entry["name"] for entry in box["env"]}
    known = {"ECHO_" + field.upper() for field in fields}
    assert own <= known, f"settings that {name} does not have: {own - known}"
    required = {"ECHO_" + field.upper() for field, info in fields.items() if info.is_required()}
    assert required <= own | set(shared), f"missing: {required - own - set(shared)}"


def test_a_drained_worker_is_given_more_time_than_its_watchdog_takes() -> None:
    fields = importlib.import_module("inference_worker.settings").Settings.model_fields
    grace = of_kind("prod", "Deployment")["inference-worker"]["spec"]["template"]["spec"][
        "terminationGracePeriodSeconds"
    ]
    deadline = fields["request_deadline_s"].default
    watchdog = fields["watchdog_s"].default
    assert fields["termination_grace_s"].default == grace
    assert deadline < watchdog < grace < fields["visibility_timeout_s"].default


def test_a_pod_keeps_enough_time_to_drain() -> None:
    for name in ("dicom-listener",):
        fields = importlib.import_module(f"{SERVICES[name]}.settings").Settings.model_fields
        spec = of_kind("prod", "Deployment")[name]["spec"]["template"]["spec"]
        assert fields["drain_seconds"].default < spec["terminationGracePeriodSeconds"]


def test_workers_scale_on_outstanding_work_and_ask_for_a_gpu() -> None:
    scaled = of_kind("prod", "ScaledObject")["inference-worker"]["spec"]
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["url"].endswith(":8080/v1/outstanding")
    assert trigger["metadata"]["valueLocation"] == "outstanding"
    assert scaled["scaleTargetRef"]["name"] in of_kind("prod", "Deployment")
    assert "replicas" not in of_kind("prod", "Deployment")["inference-worker"]["spec"]
    partitions = importlib.import_module("pipeline.settings").BusSettings.model_fields["bus_partitions"].default
    assert scaled["maxReplicaCount"] >= 1
    assert partitions >= 1
    assert container("prod", "inference-worker")["resources"]["limits"]["nvidia.com/gpu"] == 1
