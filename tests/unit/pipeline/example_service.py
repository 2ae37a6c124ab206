"""A service for tests of the runner. Argument: `work`, `interrupted`, `aside`, or how its loop ends."""

import logging
import signal
import sys
import threading
import time

from pipeline.service import ServiceRunner
from pipeline.settings import CommonSettings, load_settings


def loop(stop: threading.Event) -> None:
    what = sys.argv[1]
    if what == "die":
        raise ValueError("Doe^John")
    if what == "exit":
        raise SystemExit(3)
    if what == "aside":  # a signal may be given to any thread; the main thread sleeps by now
        runner.ready.wait()
        time.sleep(0.5)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        stop.wait()
    if what in ("work", "interrupted"):
        stop.wait()
        logging.getLogger("example").info("drained")


def not_ready() -> None:
    raise RuntimeError("Doe^John")


runner = ServiceRunner("example", load_settings(CommonSettings, "An example.", []))
runner.add_loop("loop", loop)
runner.on_stop(lambda: logging.getLogger("example").info("second"))
runner.on_stop(lambda: logging.getLogger("example").info("first"))
if sys.argv[1] == "interrupted":  # by the signal while this thread holds the lock of the event
    with runner.stop._cond:  # type: ignore[attr-defined]
        signal.raise_signal(signal.SIGTERM)
        logging.getLogger("example").info("handled")
checks = {"never": not_ready} if sys.argv[2:] == ["unready"] else {}
sys.exit(runner.run(checks, ready_fields={"answer": 42}))
