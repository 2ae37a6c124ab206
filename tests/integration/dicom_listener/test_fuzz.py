"""A few hundred damaged conversations; ECHO_FUZZ_COUNT and ECHO_FUZZ_SEED ask for more or for others."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from dicom_listener.adapters.tables import instances
from integration.dicom_listener.fuzz import Fuzzer, echo
from integration.dicom_listener.peers import listening, wait_for, wait_until_equal


def test_fuzzed_conversations_leave_nothing_behind(tmp_path: Path) -> None:
    count = int(os.environ.get("ECHO_FUZZ_COUNT", "400"))
    seed = int(os.environ.get("ECHO_FUZZ_SEED", "20260105"))
    before = threading.active_count()
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "o", request_timeout_seconds=10) as listener:
        fuzzer = Fuzzer(listener.port, seed)
        fuzzer.run(count)
        assert echo(listener.port) == "status 0000"
        assert sum(fuzzer.answers.values()) == count
        assert {"status C000", "status 0000"} <= set(fuzzer.answers), "the damage is neither too small nor too great"
        wait_for(lambda: not listener.scp._server.active_associations)
        wait_until_equal(listener.staged, [])
        for row in listener.rows(instances):
            assert listener.store.exists(row.object_key)
    wait_for(lambda: threading.active_count() <= before)
