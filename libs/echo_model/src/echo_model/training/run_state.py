"""The state of a run on disk: what learns, its optimiser, and how far it came. Works for sharded weights too.

Written by torch.distributed.checkpoint, so that each process writes its own share, and a run may go on with another
number of processes. A state counts once it is whole: the one before is removed after that.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from echo_model.training.parallel import Share

_LEARNT = StateDictOptions(ignore_frozen_params=True, strict=False)


class StepStates:
    """States of one stage in a folder of their own, `<stage>.states/<step>`."""

    def __init__(self, folder: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer, share: Share) -> None:
        self._folder, self._module, self._optimizer, self._share = folder, module, optimizer, share

    def save(self, step: int) -> None:
        """Write the state after so many steps, all or nothing."""
        place = self._folder / f"{step:08d}"
        if (place / ".metadata").exists():  # the same state; to write over it would risk the only one there is
            return
        model, optimizer = get_state_dict(self._module, self._optimizer, options=_LEARNT)
        state = {"model": model, "optimizer": optimizer}
        with _one_process_is_meant():
            state_dict_saver.save(state, checkpoint_id=place, no_dist=self._share.world == 1)
        self._share.wait()
        if self._share.rank == 0:
            for other in self._folder.iterdir():
                if other != place:
                    shutil.rmtree(other)

    def load(self) -> int:
        """Take up the newest whole state; returns its number of finished steps, 0 when there is none."""
        whole = sorted(file.parent for file in self._folder.glob("*/.metadata"))
        if not whole:
            return 0
        model, optimizer = get_state_dict(self._module, self._optimizer, options=_LEARNT)
        state: dict[str, Any] = {"model": model, "optimizer": optimizer}
        with _one_process_is_meant():
            state_dict_loader.load(state, checkpoint_id=whole[-1], no_dist=self._share.world == 1)
        set_state_dict(
            self._module,
            self._optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=_LEARNT,
        )
        return int(whole[-1].name)


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """A single process is told each time that it is one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def learnt_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All that learns, whole and on the CPU; of sharded weights the first process gets them, the others nothing."""
    options = StateDictOptions(ignore_frozen_params=True, full_state_dict=True, cpu_offload=True)
    found: dict[str, Any] = get_model_state_dict(module, options=options)
    return found
