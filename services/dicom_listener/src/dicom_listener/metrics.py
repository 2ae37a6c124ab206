"""Prometheus metrics of the listener."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

ASSOCIATIONS = Counter("echo_dicom_associations_total", "Associations by how they went", ["outcome"])
OBJECTS = Counter(
    "echo_dicom_objects_total", "Objects answered, through both doors, by DIMSE status in hexadecimal", ["status"]
)
STOW_REQUESTS = Counter("echo_stow_requests_total", "STOW-RS requests answered, by HTTP status", ["status"])
RECORDED = Counter("echo_dicom_objects_recorded_total", "Objects acknowledged, by what became of them", ["outcome"])
REFUSALS = Counter(
    "echo_dicom_refusals_total",
    "Connections, associations, objects and requests refused, by reason",
    ["scope", "reason"],
)
REFUSALS_UNTOLD = Counter(
    "echo_dicom_refusals_untold_total", "Refusals that are in the log only, because too many different ones waited"
)
BYTES = Counter("echo_dicom_received_bytes_total", "Bytes of acknowledged objects")
STORE_SECONDS = Histogram(
    "echo_dicom_store_seconds",
    "From the last byte of an object to its durable acknowledgement",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 30),
)
COMMITMENTS = Counter("echo_dicom_commitments_total", "Storage commitments, by how they ended", ["outcome"])
FETCHES = Counter("echo_fetch_requests_total", "Requests to fetch studies, by how they ended", ["outcome"])
FETCHES_OPEN = Gauge("echo_fetch_requests_open", "Requests to fetch studies that are not finished")
FETCH_FAILURES = Counter("echo_fetch_failures_total", "Attempts to fetch that failed, by reason", ["reason"])
SWEPT = Counter("echo_dicom_objects_swept_total", "Objects deleted, by why", ["kind"])
OPEN_STUDIES = Gauge("echo_dicom_open_studies", "Studies that are being received")
COMPLETED = Counter("echo_dicom_studies_completed_total", "Study versions closed, by reason", ["reason"])
