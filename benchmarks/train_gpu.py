"""Training steps of the three stages with random weights of a real shape: times and memory, as JSON.

    python benchmarks/train_gpu.py [--device cuda|cpu] [--shape 3b|7b|tiny] [--steps 20] [--batch 2] [--accumulate 1]
                                   [--lora-rank 0] [--out FILE]

A step is what `echo-model train` does with a batch on a corpus, without reading pictures: rows of a prompt with one
radiograph and a report of 180 tokens, forward, backward, clipping, AdamW. The teacher's answers are drawn. On a machine
without a GPU: `--device cpu --shape tiny`.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from echo_model.bench_shapes import SHAPES, Shape, random_model
from echo_model.training.dcd import Distillation
from echo_model.training.lora import add_adapters
from echo_model.training.optim import Optimizers
from echo_model.training.rollout import Trajectories
from echo_model.training.row_losses import Counts, distillation_loss, token_loss
from echo_model.training.row_model import Pictures, RowModel
from echo_model.training.rows import Row, autoregressive_row, distillation_row, rad_row
from echo_model.training.shape import Layout
from echo_model.training.text_stages import Loss
from echo_model.training.texts import TokenisedReport

BLOCK, TOP_K, EOS, IMAGE, START, MASK = 8, 8, 0, 1, 3, 5
STAGES = ("ar", "rad", "dcd")


def layout_of(model: Any, shape: Shape) -> Layout:
    """A prompt of one picture and of as many words as make it `prompt_tokens` long."""
    rows, columns = shape.grid
    visual = rows * columns // 4
    words = torch.full((max(8, shape.prompt_tokens - visual - 2),), 7)
    prompt = torch.cat([torch.tensor([6, START]), torch.full((visual,), IMAGE), words])
    full = torch.cat([prompt, torch.full((512,), 7)])[None]
    grid = torch.tensor([[1, rows, columns]])
    positions, _ = model.model.get_rope_index(full, mm_token_type_ids=(full == IMAGE).int(), image_grid_thw=grid)
    return Layout(prompt, (prompt == IMAGE).nonzero()[:, 0], positions[:, 0], EOS, EOS, MASK)


def drawn_answer(layout: Layout, length: int, vocabulary: int, generator: torch.Generator) -> Trajectories:
    """An answer as a teacher might have given it, on the block grid."""
    tail = layout.length % BLOCK
    width = -(-(tail + length + 1) // BLOCK) * BLOCK
    ids = torch.full((1, width), EOS)
    ids[0, :tail] = layout.prompt[layout.length - tail :]
    ids[0, tail : tail + length] = torch.randint(8, vocabulary, (length,), generator=generator)
    step = torch.zeros(1, width, dtype=torch.long)
    step[0, tail : tail + length + 1] = torch.randint(1, 5, (length + 1,), generator=generator)
    top_ids = torch.stack([torch.randperm(vocabulary - 8, generator=generator)[:TOP_K] + 8 for _ in range(width)])[None]
    top_log = torch.randn(1, width, TOP_K, generator=generator).log_softmax(dim=-1) - 0.05
    open_ = torch.ones(1, width, dtype=torch.bool)
    open_[0, :tail] = False
    return Trajectories(ids, step, top_ids, top_log, open_, torch.tensor([True]))


class Steps:
    """Training steps of one model."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.shape = args, SHAPES[args.shape]
        self.device = torch.device(args.device)
        self.half = self.device.type == "cuda"
        kind = torch.bfloat16 if self.half and args.lora_rank else torch.float32
        base = random_model(self.shape, self.device, kind)
        self.layout = layout_of(base, self.shape)
        base.requires_grad_(True)
        base.model.visual.requires_grad_(False)
        if self.half:
            base.model.visual.to(torch.bfloat16)
        if args.lora_rank:
            add_adapters(base, args.lora_rank, 1)
        self.model = RowModel(base, half=self.half).train()
        self.model.checkpoint_activations()
        self.learning = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in self.learning:
            parameter.data = parameter.data.float()
        learner = torch.optim.AdamW(self.learning, lr=1e-5, fused=self.half)
        self.optimizers = Optimizers([learner], 1000, warmup=10)
        cell = self.shape.grid[0] * self.shape.grid[1]
        self.patches = torch.randn(cell, 1176)
        self.vocabulary = self.shape.text["vocab_size"]
        self.tokens = min(180, self.shape.tokens)

    def loss(self, stage: str, samples: int, generator: torch.Generator) -> tuple[Loss, Row]:
        """The loss on a row of so many samples."""
        grids = torch.tensor([[1, *self.shape.grid]] * samples)
        pictures = Pictures(self.patches.repeat(samples, 1), grids)
        if stage == "dcd":
            paths = [drawn_answer(self.layout, self.tokens, self.vocabulary, generator) for _ in range(samples)]
            row = distillation_row([(self.layout, path) for path in paths], BLOCK)
            whole = [Counts.of(path, EOS, weighted=True) for path in paths]
            counts = Counts(*(sum(getattr(one, name) for one in whole) for name in ("weights", "ends", "fixed")))
            logits = self.model(row, pictures)
            return distillation_loss(logits, row, paths, EOS, MASK, Distillation(), counts), row
        ids = [torch.randint(8, self.vocabulary, (self.tokens,), generator=generator).numpy() for _ in range(samples)]
        told = [(self.layout, TokenisedReport(one, one < 0)) for one in ids]
        row = autoregressive_row(told, 1.0) if stage == "ar" else rad_row(told, BLOCK, [generator] * samples)
        return token_loss(self.model(row, pictures), row, float(row.weights.sum())), row

    def measure(self, stage: str) -> dict[str, Any]:
        """Times (seconds) and memory of a stage's steps; the first ones, which compile and allocate, are left out."""
        args, generator = self.args, torch.Generator().manual_seed(7)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times, losses, length = [], [], 0
        for step in range(args.steps):
            started = time.perf_counter()
            for _ in range(args.accumulate):
                (loss, _), row = self.loss(stage, args.batch // args.accumulate, generator)
                (loss / args.accumulate).backward()
                length = len(row.ids)
            self.optimizers.update(step, 1.0, self.learning)
            losses.append(float(loss.detach()))  # waits for the device
            times.append(time.perf_counter() - started)
        warm = times[min(3, len(times) - 1) :]
        if self.device.type == "cuda":
            memory = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        else:
            memory = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        return {
            "step_seconds": round(statistics.median(warm), 4),
            "slowest_step_seconds": round(max(warm), 4),
            "first_step_seconds": round(times[0], 4),
            "samples_per_second": round(args.batch / statistics.median(warm), 3),
            "row_tokens": length,
            "memory_bytes": memory,
            "loss": [round(losses[0], 4), round(losses[-1], 4)],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="3b")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    steps = Steps(args)
    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    result = {
        "device": name,
        "torch": torch.__version__,
        "shape": args.shape,
        "batch": args.batch,
        "accumulate": args.accumulate,
        "lora_rank": args.lora_rank,
        "dtype": "bfloat16" if steps.half else "float32",
        "parameters": sum(p.numel() for p in steps.model.parameters()),
        "learning": sum(p.numel() for p in steps.learning),
        "prompt_tokens": steps.layout.length,
        "stages": {stage: steps.measure(stage) for stage in STAGES},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
