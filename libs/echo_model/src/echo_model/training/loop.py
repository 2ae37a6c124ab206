"""The loop that every stage runs: numbered steps, a progress line with the time left, exact resume.

A stage's batch and noise are functions of the step number alone, so that a run that was cut off and taken up again
does the same updates as one that ran through.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from echo_model.training.optim import Optimizers
from echo_model.training.parallel import Share


class Stopped(Exception):
    """The run was asked to stop; its state is saved."""


def save_state(path: Path, module: torch.nn.Module, optimizers: Optimizers, step: int) -> None:
    """Write weights, optimiser state and the number of finished steps, all or nothing."""
    part = path.with_suffix(".part")
    torch.save({"weights": module.state_dict(), "optimizers": optimizers.state_dict(), "step": step}, part)
    part.replace(path)


def load_state(path: Path, module: torch.nn.Module, optimizers: Optimizers) -> int:
    """Take up a saved state; returns the number of finished steps, 0 when there is none. Loads tensors only."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    module.load_state_dict(state["weights"])
    optimizers.load_state_dict(state["optimizers"])
    return int(state["step"])


class States(Protocol):
    """Where the state of a run is kept between its steps."""

    def save(self, step: int) -> None:
        """Keep the state after so many steps, all or nothing."""

    def load(self) -> int:
        """Take up the last state; returns its number of finished steps, 0 when there is none."""


class _OneFile:
    """The whole state in one file, written by the first process."""

    def __init__(self, path: Path, module: torch.nn.Module, optimizers: Optimizers, *, writes: bool) -> None:
        self._path, self._module, self._optimizers, self._writes = path, module, optimizers, writes

    def save(self, step: int) -> None:
        if self._writes:
            save_state(self._path, self._module, self._optimizers, step)

    def load(self) -> int:
        return load_state(self._path, self._module, self._optimizers)


def run_stage(
    name: str,
    work: Path,
    module: torch.nn.Module,
    optimizers: Optimizers,
    loss_of: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    *,
    steps: int,
    batch: int,
    clip: float = 1.0,
    save_every_s: float = 180.0,
    stop_after: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    check: Callable[[], dict[str, float]] | None = None,
    check_every_s: float = 900.0,
    stopped: Callable[[], bool] = lambda: False,
    share: Share | None = None,
    parts: int = 1,
    states: States | None = None,
) -> int:
    """Run a stage up to ``steps`` updates of ``module`` (its parameters that need gradients), resuming in ``work``.

    ``loss_of(step)`` builds the loss and figures to show. With ``parts``, a step adds up the gradients of that many
    losses, numbered ``step * parts`` and on. ``stop_after`` ends early, as an interruption would. ``states``: where
    the state is kept, if not in one file in ``work``.
    Curves are appended to ``<name>.jsonl``, and now and then what ``check`` measures. Returns the number of finished
    steps. Raises Stopped, with the state saved, as soon as ``stopped`` says so. Of several processes (``share``) the
    first one writes; all of them read the state.
    """
    share = share or Share()
    first_process = share.rank == 0
    curve = work / f"{name}.jsonl"
    states = states or _OneFile(work / f"{name}.state.pt", module, optimizers, writes=first_process)
    parameters = [p for p in module.parameters() if p.requires_grad]
    first = step = states.load()
    started = saved = shown = checked = share.agree(time.monotonic())
    sums: dict[str, float] = {}
    count = 0

    def note(entry: dict[str, Any]) -> None:
        if not first_process:
            return
        with curve.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"step": step, "samples": step * batch, **entry}) + "\n")

    while step < steps and (stop_after is None or step < stop_after):
        if share.agree(stopped()):
            states.save(step)
            raise Stopped(f"{name} stopped after {step} of {steps} steps")
        total: dict[str, float] = {}
        for number in range(step * parts, (step + 1) * parts):
            loss, figures = loss_of(number)
            loss.backward()  # type: ignore[no-untyped-call]  # torch publishes no type for it
            total["loss"] = total.get("loss", 0.0) + float(loss.detach())
            for key, value in figures.items():
                total[key] = total.get(key, 0.0) + value / parts
        share.add_gradients(parameters)
        optimizers.update(step, clip, parameters)
        step += 1
        count += 1
        for key, value in share.join_figures(total).items():
            sums[key] = sums.get(key, 0.0) + value
        now = share.agree(time.monotonic())
        if now - shown > 20 or step == steps:
            means = {key: round(value / count, 4) for key, value in sums.items()}
            speed = (step - first) / max(1e-9, now - started)
            left = (steps - step) / max(1e-9, speed)
            text = "  ".join(f"{key} {value:.4f}" for key, value in means.items())
            say(f"{name}  {step}/{steps}  {text}  {speed * batch:.1f} samples/s  {left / 60:.1f} min left")
            note(means)
            sums, count, shown = {}, 0, now
        if now - saved > save_every_s:
            states.save(step)
            saved = now
        if check is not None and (now - checked > check_every_s or step == steps):
            module.eval()
            measured = check()
            module.train()
            say(f"{name}  {step}/{steps}  check: " + "  ".join(f"{key} {value}" for key, value in measured.items()))
            note({"check": measured})
            checked = share.agree(time.monotonic())
    if step > first:
        states.save(step)
    return step


def weights_of(module: torch.nn.Module) -> dict[str, Any]:
    """Copies of a module's tensors."""
    return {key: value.detach().clone() for key, value in module.state_dict().items()}
