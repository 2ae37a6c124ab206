"""The start of the whole after a supervisor that was killed, and its gateway's connections to the children."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil

from pipeline.http import HttpServer, bind
from servers.hasty import hasty_server
from servers.ports import free_port
from standalone.gateway import Gateway
from standalone.layout import DataDir

LISTENS = """
import socket, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listens", flush=True)
time.sleep(600)
"""

# Nothing is to start here: what counts is how far a start gets.
SERVES = """
import sys
from pathlib import Path
from standalone import serve
from standalone.children import ChildFailed

def start(*_):
    raise ChildFailed("the ports were free")

serve.Supervisor.start = start
folder, dicom_port, http_port = sys.argv[1:]
sys.exit(serve.serve(serve.ServeOptions(
    Path(folder), int(dicom_port), int(http_port), "127.0.0.1", "ECHO", 2.0, "demo", "auto", "deliver", "info"
)))
"""


def test_ports_that_a_killed_supervisors_children_still_hold_are_freed_before_they_are_taken(tmp_path: Path) -> None:
    data, ports = DataDir(tmp_path), [str(free_port()), str(free_port())]
    data.create()
    left = [subprocess.Popen([sys.executable, "-c", LISTENS, port], stdout=subprocess.PIPE) for port in ports]
    try:
        for number, process in enumerate(left):
            assert process.stdout is not None
            assert process.stdout.readline() == b"listens\n"
            record = {"pid": process.pid, "created": psutil.Process(process.pid).create_time()}
            (data.run / f"left-{number}.pid.json").write_text(json.dumps(record))
        done = subprocess.run(
            [sys.executable, "-c", SERVES, str(tmp_path), *ports], capture_output=True, text=True, timeout=120
        )
        assert done.stderr.splitlines()[-3:-2] == ["the ports were free"], done.stderr
        assert done.returncode == 1
    finally:
        for process in left:
            process.kill()
            process.communicate()


def test_a_child_that_ends_an_idle_connection_costs_no_answer() -> None:
    ready = threading.Event()
    ready.set()
    with hasty_server() as child:
        server = HttpServer(Gateway({"/": child}, {"one": child}, ready).app(), bind("127.0.0.1", 0))
        server.start()
        try:
            for path in ("/a", "/a", "/readyz", "/readyz"):
                answer = httpx.get(f"http://127.0.0.1:{server.port}{path}", timeout=60)
                assert answer.status_code == 200, answer.text
        finally:
            server.stop()
