"""Two processes over gloo do the updates that one does: same losses, same weights."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unit.echo_model import parallel_job

TESTS = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    parallel_job.main(tmp_path / "one.pt")
    env = os.environ | {
        "PYTHONPATH": str(TESTS),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
    }
    job = [sys.executable, parallel_job.__file__, str(tmp_path / "two.pt")]
    ranks = [
        subprocess.Popen(job, env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors.decode()[-2000:]
    finally:
        for process in ranks:
            process.kill()
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    assert (one["world"], two["world"]) == (1, 2)
    for stage in ("ar", "rad", "dcd"):
        assert len(one[stage]) == parallel_job.STEPS
        assert min(one[stage]) > 0
        assert two[stage] == pytest.approx(one[stage], rel=1e-5), stage
        for name, value in one[f"{stage}.weights"].items():
            assert torch.allclose(value, two[f"{stage}.weights"][name], atol=2e-5), (stage, name)
