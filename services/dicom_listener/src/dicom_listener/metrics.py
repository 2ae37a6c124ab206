"""Prometheus metrics of the listener."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from functools import partial

from prometheus_client import Counter, Gauge, Histogram, Metric, ProcessCollector
from prometheus_client.registry import Collector

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


class ProcessFigures(Collector):
    """Of other processes what `process_*` says of this one, as `echo_dicom_receiving_process_*` with their names."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._collectors = {
            name: ProcessCollector("echo_dicom_receiving", partial(int, pid), registry=None)
            for name, pid in pids.items()
        }

    def collect(self) -> Iterable[Metric]:
        """Memory, processor time, open files and start; nothing of a process that has ended."""
        found: dict[str, Metric] = {}
        for name, collector in self._collectors.items():
            for metric in collector.collect():
                whole = found.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                whole.samples += [sample._replace(labels={"process": name}) for sample in metric.samples]
        return found.values()


Labels = tuple[tuple[str, str], ...]
Counted = dict[tuple[str, Labels], list[float]]
"""By name of the metric and labels: one sum, or each observation of a histogram."""

_OF_RECEIVING = ("ASSOCIATIONS", "OBJECTS", "RECORDED", "BYTES", "STORE_SECONDS")


class Tally:
    """Counts in a process that nobody scrapes; `take` gives what another one is to `add`. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted: Counted = {}

    def use(self) -> None:
        """From now on what is counted while objects are received goes here."""
        for name in _OF_RECEIVING:
            globals()[name] = _Tallied(self, name)

    def count(self, name: str, labels: Labels, amount: float, *, each: bool) -> None:
        """Add to the sum, or (`each`) to the observations."""
        with self._lock:
            amounts = self._counted.setdefault((name, labels), [])
            if each or not amounts:
                amounts.append(amount)
            else:
                amounts[0] += amount

    def take(self) -> Counted:
        """What was counted since the last call."""
        with self._lock:
            taken, self._counted = self._counted, {}
        return taken


class _Tallied:
    """Stands for a metric."""

    def __init__(self, tally: Tally, name: str, labels: Labels = ()) -> None:
        self._tally = tally
        self._name = name
        self._labels = labels

    def labels(self, **labels: str) -> _Tallied:
        """As the metric's own."""
        return _Tallied(self._tally, self._name, tuple(labels.items()))

    def inc(self, amount: float = 1) -> None:
        """As the metric's own."""
        self._tally.count(self._name, self._labels, amount, each=False)

    def observe(self, amount: float) -> None:
        """As the metric's own."""
        self._tally.count(self._name, self._labels, amount, each=True)


def add(counted: Counted) -> None:
    """Count what another process has counted."""
    for (name, labels), amounts in counted.items():
        metric = globals()[name]
        if labels:
            metric = metric.labels(**dict(labels))
        for amount in amounts:
            if isinstance(metric, Histogram):
                metric.observe(amount)
            else:
                metric.inc(amount)
