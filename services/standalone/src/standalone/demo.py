"""`make demo`: the whole flow in front of your eyes, with a real radiograph and a phantom."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pydicom
from pynetdicom import AE
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from standalone.layout import MARKER

REAL_RADIOGRAPH = Path(__file__).parent / "demo_data" / "nih-google-nofinding.dcm"
_FINAL = ("delivered", "skipped", "failed", "parked")
_HOPS = ("receiving", "complete", "queued", "running", "generated", "delivered")
_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class DemoOptions:
    """What `python -m standalone demo` was asked for."""

    data_dir: Path
    dicom_port: int
    http_port: int
    keep: bool


class DemoFailed(Exception):
    """Something did not come out; the text says what and where to look."""


def _usable(port: int) -> int:
    for candidate in (port, 0):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            chosen: int = sock.getsockname()[1]
            return chosen
    raise DemoFailed("no free port")


def make_phantom(folder: Path) -> Path:
    """A phantom with several findings, as a DICOM file, by the model library's own command."""
    command = [
        str(Path(sys.executable).with_name("echo-model")),
        "phantoms",
        "--out",
        str(folder),
        "--count",
        "12",
        "--seed",
        "20261",
        "--dicom",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    labels = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    best = max(
        labels,
        key=lambda label: (
            label["findings"]["pleural_effusion"]["present"],
            sum(f["present"] for f in label["findings"].values()) == 2,
        ),
    )
    return folder / f"{best['id']}.dcm"


def _send(path: Path, port: int) -> str:
    """C-STORE over a real association; returns the StudyInstanceUID."""
    ds = pydicom.dcmread(path)
    ae = AE(ae_title="DEMO")
    ae.add_requested_context(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID)
    assoc = ae.associate("127.0.0.1", port, ae_title="ECHO")
    if not assoc.is_established:
        raise DemoFailed("the listener did not accept the association")
    try:
        status = assoc.send_c_store(ds)
    finally:
        assoc.release()
    if "Status" not in status or status.Status != 0x0000:
        raise DemoFailed(f"C-STORE was answered with {status.get('Status', 'nothing')}")
    return str(ds.StudyInstanceUID)


def _progress(title: str, state: str, started: float, reason: str) -> Table:
    table = Table.grid(padding=(0, 1))
    reached = _HOPS.index(state) if state in _HOPS else -1
    line = Text()
    for index, hop in enumerate(_HOPS):
        style = (
            "bold green" if index < reached or state == "delivered" else "bold yellow" if index == reached else "dim"
        )
        line.append(("" if index == 0 else " > ") + hop, style=style)
    if state not in _HOPS:
        line.append(f"  {state}: {reason}", style="bold red")
    table.add_row(Text(title, style="bold"), line, f"{time.monotonic() - started:5.1f} s")
    return table


def _follow(console: Console, client: httpx.Client, title: str, uid: str) -> dict[str, Any]:
    """Show the states as they come; returns the study when it is final."""
    started = time.monotonic()
    study: dict[str, Any] = {}
    with Live(_progress(title, "", started, ""), console=console, refresh_per_second=10, transient=False) as live:
        while time.monotonic() - started < _TIMEOUT_S:
            answer = client.get(f"/api/studies/{uid}")
            if answer.status_code == 200:
                study = answer.json()
                live.update(_progress(title, study["state"], started, (study.get("reason") or {}).get("text", "")))
                if study["state"] in _FINAL:
                    return study
            time.sleep(0.1)
    raise DemoFailed(f"no report after {_TIMEOUT_S:.0f} s; the study's state is {study.get('state', 'unknown')!r}")


def _show(console: Console, client: httpx.Client, title: str, study: dict[str, Any]) -> None:
    if not console.is_terminal:
        console.print()  # the progress display ends its line only on a terminal
    if study["state"] != "delivered":
        reason = study.get("reason") or {}
        raise DemoFailed(f"{title}: {study['state']} ({reason.get('code')}: {reason.get('text')})")
    report, fhir = study["report"], study["fhir"]
    body = Text()
    for notice in report.get("notices", []):
        body.append(f"! {notice}\n", style="bold red")
    body.append("Findings    ", style="bold")
    body.append(report["findings"] + "\n")
    body.append("Impression  ", style="bold")
    body.append(report["impression"] + "\n")
    body.append(
        f"AI draft by {report['model']['id']} {report['model']['version']}, not verified by a radiologist.", style="dim"
    )
    console.print(Panel(body, title=title, title_align="left"))
    path = "/fhir/" + fhir["url"].split("/fhir/", 1)[1]
    resource = client.get(path, headers={"accept": "application/fhir+json"}).raise_for_status().json()
    elements = ("resourceType", "id", "status", "identifier", "subject", "effectiveDateTime", "conclusion")
    short = {name: resource[name] for name in elements if name in resource}
    short["meta"] = {"versionId": resource["meta"]["versionId"], "security": resource["meta"].get("security")}
    short["result"] = f"{len(resource.get('result', []))} Observations"
    console.print(f"DiagnosticReport  {fhir['url']}", soft_wrap=True)
    console.print_json(json.dumps(short))
    for line in study["timeline"]:
        console.print(f"  {line['at'][11:23]}  {line['hop']:<18} {line['event']}", style="dim", highlight=False)


def _wait_ready(process: subprocess.Popen[bytes], base: str, log: Path) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    with httpx.Client(base_url=base, timeout=5.0) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise DemoFailed(f"the services ended with status {process.returncode}; see {log}")
            try:
                # The gateway listens long before the services do: ask rarely, each answer asks all of them.
                if client.get("/readyz").status_code == 200:
                    return
            except httpx.HTTPError:
                pass  # not listening yet
            time.sleep(0.5)
    raise DemoFailed(f"the services were not ready after {_TIMEOUT_S:.0f} s; see {log}")


def _empty(folder: Path) -> None:
    """Remove an earlier demo's data, and nothing that is not one."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / MARKER).exists():
        raise DemoFailed(f"{folder} holds something else; name another --data-dir")
    from standalone.layout import DataDir, DataDirInUse

    try:
        DataDir(folder.resolve()).lock().close()
    except DataDirInUse as error:
        raise DemoFailed(f"{error}; stop it first (Ctrl-C, or kill it)") from None
    shutil.rmtree(folder)


def demo(options: DemoOptions) -> int:
    """Run the demo; returns the exit status."""
    console = Console()
    started = time.monotonic()
    process: subprocess.Popen[bytes] | None = None
    try:
        _empty(options.data_dir)
        options.data_dir.mkdir(parents=True, exist_ok=True)
        dicom_port, http_port = _usable(options.dicom_port), _usable(options.http_port)
        base, log = f"http://127.0.0.1:{http_port}", options.data_dir / "serve.log"
        console.print(f"Starting everything in [bold]{options.data_dir}[/] (log: {log}) ...")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "standalone", "serve", "--data-dir", str(options.data_dir),
                 "--dicom-port", str(dicom_port),
                 "--http-port", str(http_port), "--quiet-seconds", "2"],
                stdout=output, stderr=output, start_new_session=True, env={**os.environ},
            )  # fmt: skip
        _wait_ready(process, base, log)
        console.print(
            f"Ready after {time.monotonic() - started:.1f} s\n"
            f"  Console [bold]{base}/[/]\n  FHIR    [bold]{base}/fhir[/]\n  DICOM   ECHO@127.0.0.1:{dicom_port}\n",
            highlight=False,
            soft_wrap=True,
        )
        with httpx.Client(base_url=base, timeout=30.0) as client, tempfile.TemporaryDirectory() as scratch:
            for title, path in (
                ("A real radiograph (NIH Clinical Center, ChestX-ray14)", REAL_RADIOGRAPH),
                ("A phantom with findings (synthetic)", make_phantom(Path(scratch))),
            ):
                uid = _send(path, dicom_port)
                _show(console, client, title, _follow(console, client, title, uid))
                console.print(f"  Console: {base}/studies/{uid}\n", highlight=False, soft_wrap=True)
        console.print(
            "The demo model has only ever seen synthetic phantoms. Nothing here is a diagnosis.", style="bold"
        )
        if options.keep:
            console.print(f"Still running: {base}/   (Ctrl-C stops it)")
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            process.wait()
        return 0
    except KeyboardInterrupt:
        return 0
    except DemoFailed as error:
        console.print(f"[bold red]The demo failed:[/] {error}")
        return 1
    finally:
        if process is not None and process.poll() is None:
            console.print("Stopping ...")
            process.terminate()
            process.wait()  # it gives each of its children a minute, one after the other
            console.print(f"Stopped cleanly after {time.monotonic() - started:.0f} s in all.")
