"""What the teacher of stage 3 says about the studies of a corpus, decoded once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from echo_model.training.config import TrainConfig
from echo_model.training.loop import Stopped
from echo_model.training.parallel import Share
from echo_model.training.rollout import Trajectories
from echo_model.training.row_model import RowModel
from echo_model.training.studies import Prompts, Study
from echo_model.training.study_losses import PictureSource
from echo_model.training.study_rollout import roll_out_studies
from echo_model.training.trajectory_store import join, write_shards

SHARD = 256
_AT_ONCE = 16


def write_answers(
    folder: Path,
    teacher: RowModel,
    studies: Sequence[Study],
    pictures: PictureSource,
    prompts: Prompts,
    config: TrainConfig,
    share: Share,
    *,
    say: Callable[[str], None],
    stopped: Callable[[], bool],
) -> None:
    """Decode what is missing of the answers to all studies; each process writes shards of its own.

    Raises Stopped between two shards when asked.
    """
    top_k = min(config.top_k, teacher.model.config.text_config.vocab_size - 1)

    def decode(numbers: range) -> Trajectories:
        parts = []
        for start in range(numbers.start, numbers.stop, _AT_ONCE):
            some = range(start, min(start + _AT_ONCE, numbers.stop))
            pictures.ahead(range(some.stop, min(some.stop + _AT_ONCE, numbers.stop)))
            with torch.no_grad(), teacher.computing():
                parts.append(
                    roll_out_studies(
                        teacher.model,
                        [prompts.of(studies[number].grids) for number in some],
                        [teacher.see(pictures.of(number)) for number in some],
                        config.block_length,
                        tau=config.tau,
                        top_k=top_k,
                        max_tokens=config.longest,
                        canonical=config.canonical or None,
                    )
                )
        return join(parts, prompts.eos)

    def done(count: int) -> None:
        say(f"answers  {count}/{len(studies)}")
        if stopped():
            raise Stopped(f"answers stopped after {count} of {len(studies)}")

    write_shards(folder, decode, len(studies), SHARD, done=done, own=(share.rank, share.world))
    share.wait()
