"""Weights, gradients and optimiser state spread over all processes (torch's FSDP2)."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from echo_model.training.row_model import RowModel


def shard(model: RowModel, device: str, world: int, *, half: bool) -> None:
    """Shard a model in place: every layer of the language model is gathered for itself, all the rest together.

    Gradients are added up, not averaged: the losses are shares of a sum already.
    """
    mesh = init_device_mesh(device, (world,))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for part in (*model.model.model.language_model.layers, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
