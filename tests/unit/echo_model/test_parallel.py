"""Two processes over gloo do the updates that one does: same losses, same weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from servers.ports import free_port
from unit.echo_model import parallel_job

TESTS = Path(__file__).parents[2]


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
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors.decode()[-2000:]
    finally:
        for process in ranks:
            with process:  # closes its pipe, and waits
                process.kill()
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    assert (one["world"], two["world"]) == (1, 2)
    for stage in ("ar", "rad", "dcd"):
        assert len(one[stage]) == parallel_job.STEPS
        assert min(one[stage]) > 0
        assert two[stage] == pytest.approx(one[stage], rel=1e-5), stage
        for name, value in one[f"{stage}.weights"].items():
            assert torch.allclose(value, two[f"{stage}.weights"][name], atol=2e-5), (stage, name)
