"""One broker and one set of checkpoints per test or session."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.inference_worker.rig import Rig, checkpoint, valkey


@pytest.fixture(scope="session")
def quick_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("quick"), blocks=4)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="echo-rig-") as folder, valkey(Path(folder) / "v") as broker_url:
        rig = Rig(Path(folder), broker_url)
        try:
            yield rig
        finally:
            rig.close()
