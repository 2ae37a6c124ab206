"""Dispatcher and worker together: from a completed study to a draft report or a reason."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from integration.inference_worker.rig import Rig, eventually, radiograph
from pipeline.events import REPORT_FAILED, REPORT_GENERATED, REPORT_STARTED, STUDY_SKIPPED


@pytest.mark.timeout(1800)
def test_a_study_becomes_a_draft_and_bad_ones_fail_with_a_reason_beside_it(rig: Rig, quick_model: Path) -> None:
    dispatcher = rig.dispatcher()
    worker = rig.worker(quick_model).wait_ready()
    good = rig.send_study()
    not_dicom = rig.send_study(data=b"hello, this is no DICOM file" * 20)
    truncated = rig.send_study(data=radiograph(1)[:-5000])
    ct = rig.send_study(modality="CT")
    last = rig.send_study(data=radiograph(2))

    (skipped,) = rig.wait_for(STUDY_SKIPPED, ct)
    assert skipped.data["reason"]["code"] == "modality_not_reportable"
    (generated,) = rig.wait_for(REPORT_GENERATED, good)
    assert generated.data["model"]["version"]
    assert generated.data["tokens"]["forward_passes"] >= 4
    assert len(rig.events(REPORT_STARTED, good)) == 1
    rig.wait_for(REPORT_GENERATED, last)
    for uid, code in ((not_dicom, "not_dicom"), (truncated, "pixels_undecodable")):
        (failed,) = rig.wait_for(REPORT_FAILED, uid)
        assert failed.data["error_code"] == code
        assert failed.data["retryable"] is False
    eventually(lambda: rig.outstanding(dispatcher)["outstanding"] == 0)
    eventually(lambda: rig.unacknowledged() == 0)
    eventually(lambda: not list(rig.store.keys("manifests")))
    # Identifiers are nowhere in the logs.
    for process in (dispatcher, worker):
        text = process.log.read_text()
        assert not [uid for uid in (good, not_dicom, truncated, ct, last) if uid in text]
    worker.signal(signal.SIGTERM)
    assert worker.child.wait(180) == 0
    dispatcher.signal(signal.SIGTERM)
    assert dispatcher.child.wait(180) == 0
