"""Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers") in float32, and one-cosine schedules.

``torch.optim.Muon`` runs its iteration in bfloat16, which is hundreds of times slower than float32 on CPUs without
AMX; hence an own one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch


def orthogonalise(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix; (m, n) in, (m, n) out."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x: torch.Tensor = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = x.T if matrix.shape[0] > matrix.shape[1] else x
    return result


class Muon(torch.optim.Optimizer):
    """Momentum whose updates of 2-D weights are orthogonalised, scaled to the matrix's shape."""

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # torch's base returns the loss
        # the base class also offers a closure that returns the loss; nothing here needs it
        """Update all weights from their gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                moving: torch.Tensor = state["momentum"]
                moving.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(moving, group["momentum"]))
                p.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, p.shape[0] / p.shape[1])))


def split_for_muon(module: torch.nn.Module, *, keep: tuple[str, ...]) -> tuple[list[Any], list[Any]]:
    """Parameters for Muon (weights with 2 dimensions) and for AdamW (the rest, and names that start with ``keep``)."""
    hidden: list[Any] = []
    rest: list[Any] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (hidden if parameter.ndim == 2 and not name.startswith(keep) else rest).append(parameter)
    return hidden, rest


class Optimizers:
    """Several optimisers with base rates under one schedule: linear warm-up, then one cosine down to 5 %."""

    def __init__(self, parts: list[torch.optim.Optimizer], total_steps: int, warmup: int) -> None:
        self.parts = parts
        self.total = max(1, total_steps)
        self.warmup = warmup
        self.base = [[group["lr"] for group in part.param_groups] for part in parts]

    def rate(self, step: int) -> float:
        """Factor on the base rates at ``step``."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))

    def update(self, step: int, clip: float, parameters: list[torch.nn.Parameter]) -> None:
        """Clip the gradients' norm, set the rates of ``step``, update and clear the gradients."""
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        factor = self.rate(step)
        for part, rates in zip(self.parts, self.base, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """State of all parts, for a checkpoint."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Take up a saved state."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
