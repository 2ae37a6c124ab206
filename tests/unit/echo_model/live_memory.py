"""The largest number of bytes that tensors on the CPU take at once while something runs."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], Any]) -> int:
    """Peak over what lived before, as the allocator reports it: temporaries inside operators are seen too."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recording:
        result = work()
    del result
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        recording.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    changes = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    # The allocator's own running total: two events may bear the same time, and their order would decide the sum.
    before = changes[0]["args"]["Total Allocated"] - changes[0]["args"]["Bytes"]
    return int(max(change["args"]["Total Allocated"] for change in changes)) - before
