"""The listener as processes that kill themselves (SIGKILL) at a named point, the n-th time one of them is there.

Each line of JSON on standard input starts one: `point` (null: it lives), `nth`, `environment`, `log`. It is forked from
this process, which has imported everything and has no threads, so that a start costs little; from there on it is what
`python -m dicom_listener` is. Its process id and then its end are told on standard output. The points lie between the
steps of receiving: the product knows nothing of them, they are wrapped around its functions.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from dicom_listener.adapters.dimse import StagingDimse
from dicom_listener.adapters.ledger import SqlLedger
from dicom_listener.adapters.staging import IncomingFile
from dicom_listener.app import main
from pipeline import store
from pipeline.outbox import OutboxRelay
from pipeline.sql_bus import SqlProducer
from pipeline.store import LocalObjectStore

POINTS: dict[str, tuple[object, str, bool]] = {
    # name: (class or module, function, whether the function runs first)
    "chunk_written": (IncomingFile, "flush", True),
    "file_whole": (IncomingFile, "finish", True),
    "file_renamed": (store, "_fsync", False),
    "folder_synced": (LocalObjectStore, "put_file", True),
    "row_written": (SqlLedger, "_touch_study", True),
    "row_committed": (SqlLedger, "record_each", True),
    "success_sent": (StagingDimse, "_answer", True),
    "before_publishing": (SqlProducer, "publish", False),
    "published": (SqlProducer, "publish", True),
    "marked": (OutboxRelay, "relay_once", True),
}


def killing(original: Callable[..., Any], nth: int, *, after: bool) -> Callable[..., Any]:
    """The function, with an end. A call that finds nothing to do (and answers 0) is none."""
    calls = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= nth and not after:
            os.killpg(0, signal.SIGKILL)
        result = original(*arguments, **named)
        if result == 0:
            calls -= 1
        elif calls >= nth:
            os.killpg(0, signal.SIGKILL)
        return result

    return wrapped


def child(order: dict[str, Any]) -> None:
    """Become the listener, whose processes die together."""
    os.setpgid(0, 0)
    with open(order["log"], "wb") as log:  # noqa: PTH123  # a descriptor is what is wanted
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    for name in [name for name in os.environ if name.startswith("ECHO_")]:
        del os.environ[name]
    os.environ.update(order["environment"])
    if order["point"] is not None:
        holder, function, after = POINTS[order["point"]]
        setattr(holder, function, killing(getattr(holder, function), order["nth"], after=after))
    os._exit(main([]))


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
