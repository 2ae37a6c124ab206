"""The engine on a CUDA device. Run where one is: pytest tests/gpu."""

from __future__ import annotations

import pytest
import torch

from echo_model import GenerationSettings, ReportEngine
from echo_model.data.phantoms import generate_phantom

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device here; run pytest tests/gpu on one"
)

SEED = 77_002


def test_the_device_writes_what_the_cpu_writes() -> None:
    cpu = ReportEngine.from_pretrained("demo", device="cpu", dtype="float32")
    cuda = ReportEngine.from_pretrained("demo", device="cuda", dtype="float32")
    images = [generate_phantom(SEED, index).image for index in range(8)]
    for steps in (None, 1):
        settings = GenerationSettings(denoising_steps=steps)
        same = sum(cpu.generate(i, settings).token_ids == cuda.generate(i, settings).token_ids for i in images)
        assert same >= 7  # sums round differently, and a near tie may fall the other way


def test_bfloat16_reads_the_same_findings() -> None:
    cpu = ReportEngine.from_pretrained("demo", device="cpu", dtype="float32")
    half = ReportEngine.from_pretrained("demo", device="cuda", dtype="bfloat16")
    same = 0
    for index in range(8):
        image = generate_phantom(SEED, index).image
        same += cpu.generate(image).structured_findings.keys() == half.generate(image).structured_findings.keys()
    assert same >= 7
