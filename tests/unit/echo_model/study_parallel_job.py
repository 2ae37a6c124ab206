"""A few steps on a corpus in each of several processes, by the files that are named on the command line.

With HOLD_AFTER_STEPS in the environment the run comes so far, and waits there to be killed.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from echo_model.training.commands import train
from echo_model.training.config import StageName, read_config


class Hold:
    """Is asked before each step whether to stop, and never says so."""

    def __init__(self) -> None:
        self.left = int(os.environ.get("HOLD_AFTER_STEPS", "-1"))

    def __call__(self) -> bool:
        if self.left == 0:
            threading.Event().wait()
        self.left -= 1
        return False


def main(files: list[str]) -> None:
    for file in map(Path, files):
        stage: StageName = "dcd" if "dcd" in file.stem else "rad" if "rad" in file.stem else "ar"
        train(stage, read_config(file, stage), stopped=Hold())


if __name__ == "__main__":
    main(sys.argv[1:])
