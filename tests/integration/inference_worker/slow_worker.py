"""The worker as it is, but for its model: one that takes a set time and can be told to hang. Starts without torch.

Run as a program by the tests of signals, lost workers and lost queues, where what the model writes does not matter.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

from inference_worker.app import serve
from inference_worker.domain import Draft, Fault
from inference_worker.ports import GreyImage
from inference_worker.settings import Settings
from pipeline.service import ServiceRunner

SECONDS = float(os.environ.get("SLOW_MODEL_S", "0.1"))
HANG_UNDER = int(os.environ.get("SLOW_MODEL_HANG_ROWS", "0"))


class SlowModel:
    model_id, model_version = "slow", "1"

    def generate(self, images: Sequence[GreyImage], timeout_s: float) -> Draft:
        if images[0].shape[0] < HANG_UNDER:
            threading.Event().wait()
        time.sleep(min(SECONDS, timeout_s))
        if timeout_s < SECONDS:
            raise Fault("deadline_exceeded")
        return Draft("t", "t", "", (), (), (), None, 1, 1, 1.0)

    def stalled_s(self) -> float:
        return 0.0


if __name__ == "__main__":
    settings = Settings()
    raise SystemExit(serve(settings, ServiceRunner("inference_worker", settings), SlowModel()))
