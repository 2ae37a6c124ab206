"""A few steps on a corpus in each of several processes, by the files that are named on the command line."""

from __future__ import annotations

import sys
from pathlib import Path

from echo_model.training.commands import train
from echo_model.training.config import StageName, read_config


def main(files: list[str]) -> None:
    for file in map(Path, files):
        stage: StageName = "dcd" if "dcd" in file.stem else "rad" if "rad" in file.stem else "ar"
        train(stage, read_config(file, stage))


if __name__ == "__main__":
    main(sys.argv[1:])
