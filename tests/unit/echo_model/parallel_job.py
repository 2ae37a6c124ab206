"""A few steps of every text stage with a small model, in the process that runs it; losses and weights to a file."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from echo_model.training.dcd import Distillation, dcd_loss
from echo_model.training.parallel import share_of_this_process
from echo_model.training.rollout import roll_out
from echo_model.training.text_stages import TextData, ar_loss, rad_loss, train_text
from unit.echo_model.small_training import BLOCK, ending, small_data, small_model

STEPS = 2


def main(out: Path) -> None:
    torch.set_num_threads(1)
    share = share_of_this_process()
    found: dict[str, Any] = {"world": share.world}
    data = small_data()
    teacher = small_model(2)
    # random weights never end of themselves: the token that they choose most often stands in for the end
    paths = roll_out(teacher, data.layout, data.features.rows(range(16)), BLOCK, tau=0.05, top_k=1, max_tokens=32)
    short = TextData(data.features, data.reports, ending(data.layout, int(paths.ids.flatten().mode().values)))
    for stage in ("ar", "rad", "dcd"):
        model, losses = small_model(5), []

        def loss(rows: Any, step: int, stage: str = stage, model: Any = model) -> Any:
            if stage == "ar":
                return ar_loss(model, data, rows, 5.0, share)
            if stage == "rad":
                return rad_loss(model, data, rows, BLOCK, torch.Generator().manual_seed(step), share)
            return dcd_loss(model, teacher, short, rows, BLOCK, Distillation(tau=0.05, top_k=8), share)

        def counted(rows: Any, step: int, losses: list[float] = losses, loss: Any = loss) -> Any:
            value, figures = loss(rows, step)
            losses.append(float(share.counts(value.detach())))
            return value, figures

        with tempfile.TemporaryDirectory() as work:
            train_text(
                stage, model, Path(work), counted, data.lengths, samples=STEPS * 4, rate=1e-3, batch=4, share=share
            )
        found[stage] = losses
        found[f"{stage}.weights"] = model.state_dict()
    if share.rank == 0:
        torch.save(found, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
