"""`python jumping_clock.py FILE`: the listener, its wall clock wrong by as many seconds as FILE says at the moment."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dicom_listener.app import main
from pipeline.clock import SystemClock


def now(self: SystemClock) -> datetime:
    """The machine's time, wrong by what the test wants."""
    return datetime.now(UTC) + timedelta(seconds=float(Path(sys.argv[1]).read_text()))


if __name__ == "__main__":
    SystemClock.now = now  # type: ignore[method-assign]  # the process has its clock from nowhere else
    raise SystemExit(main([]))
