"""`echo-model train` on a corpus: one stage of a Qwen2.5-VL-shaped checkpoint, from checkpoint to checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from echo_model.model import DTYPES
from echo_model.training.config import StageName, TrainConfig, TrainConfigError
from echo_model.training.loop import run_stage
from echo_model.training.lora import add_adapters
from echo_model.training.optim import Optimizers
from echo_model.training.parallel import Share, share_of_this_process
from echo_model.training.pictures import ReadPictures, StoredPictures
from echo_model.training.row_model import RowModel
from echo_model.training.run_note import claim
from echo_model.training.run_state import StepStates, learnt_weights
from echo_model.training.sharding import shard
from echo_model.training.studies import Prompts, Studies, Study, read_studies
from echo_model.training.study_answers import write_answers
from echo_model.training.study_checks import TextCheck, mean_loss
from echo_model.training.study_losses import Material, Order, StudyLoss
from echo_model.training.study_output import load_initial, write_trained
from echo_model.training.text_stages import Loss
from echo_model.training.trajectory_store import StoredTrajectories

Say = Callable[[str], None]
_WARM_UP = 50
_CHECK_NOISE = 777_000_007  # noise of the checks is that of no step


def train_on_corpus(
    stage: StageName,
    config: TrainConfig,
    *,
    resume: bool = False,
    say: Say = lambda line: None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Run a stage to its end and write the checkpoint; arguments and errors as in `commands.train`.

    Of several processes each does a share of every part of a batch. Raises Stopped, with the state saved, when asked.
    """
    torch.set_num_threads(config.threads)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainConfigError("key 'device': no CUDA device can be used here")
    share = share_of_this_process(cpu=config.device == "cpu", sharded=config.sharding == "full")
    if config.batch % (config.accumulate * share.world):
        raise TrainConfigError(
            f"key 'batch': {config.batch} cannot be shared equally by {share.world} processes "
            f"in {config.accumulate} parts"
        )
    _Run(stage, config, share, say if share.rank == 0 else lambda line: None, stopped).go(resume=resume)


class _Run:
    """One stage of one process."""

    def __init__(
        self, stage: StageName, config: TrainConfig, share: Share, say: Say, stopped: Callable[[], bool]
    ) -> None:
        self.stage, self.config, self.share, self.say, self.stopped = stage, config, share, say, stopped
        assert config.init is not None
        assert config.corpus is not None
        self.loaded = load_initial(config)
        self.studies: Studies = read_studies(
            config.corpus,
            self.loaded.tokenizer,
            self.loaded.image_config,
            most_pictures=config.images,
            longest=config.longest,
        )
        self.prompts = Prompts(self.loaded, config.longest + 2 * config.block_length)
        self.sharded = config.sharding == "full" and share.world > 1
        self.half = config.dtype == "bfloat16"
        self.model = RowModel(self.loaded.model, half=self.half, train_vision=config.train_vision)
        self.readers: list[ReadPictures] = []
        self.measured: dict[str, float] = {}

    def go(self, *, resume: bool) -> None:
        """From the initial checkpoint to the new one."""
        config, share = self.config, self.share
        begun = {"init_revision": self.loaded.revision, "corpus_digest": self.studies.digest}
        with share.first_alone():
            config.work.mkdir(parents=True, exist_ok=True)
            claim(self.stage, config, resume=resume or share.rank > 0, more=begun)
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(self.studies.left_out.items())) or "none"
        self.say(
            f"{self.stage}  {len(self.studies.train)} studies to learn from, {len(self.studies.validate)} to look at; "
            f"left out: {left_out}"
        )
        try:
            self._learn()
        finally:
            for reader in self.readers:
                reader.close()
        weights = learnt_weights(self.model)
        if share.rank == 0:
            write_trained(self.stage, config, weights, self.prompts, self.studies, self.measured)
            self.say(f"{self.stage}  written to {config.out}")
        share.wait()

    def _learn(self) -> None:
        config, share = self.config, self.share
        learnt = self._subset(self.studies.train, config.samples)
        looked_at = self._subset(self.studies.validate, config.validated)
        if not self.sharded or self.stage == "dcd" or self._keeps_features:
            self.model.to(config.device)  # what is sharded at once moves by itself, a layer at a time
        material = self._material(learnt, "answers")
        seen = self._material(looked_at, "answers-validate") if looked_at else None
        parameters = self._prepare()
        loss = StudyLoss(self.stage, config, self.model, self.prompts.eos, self.loaded.mask_token_id)
        order = Order(material.count, config.batch, config.seed)
        parts, steps = config.accumulate, config.samples // config.batch
        places = np.arange(config.batch)

        def own(number: int) -> Any:
            return places[number % parts * share.world + share.rank :: parts * share.world]

        def loss_of(number: int) -> Loss:
            following = number + 1
            if following < steps * parts:
                samples = order.batch_of(following // parts)[own(following)]
                material.pictures.ahead([material.number(int(sample)) for sample in samples])
            return loss(material, order.batch_of(number // parts), own(number), number // parts)

        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.01},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            fused=config.device == "cuda",
        )
        self.model.train()
        run_stage(
            self.stage,
            config.work,
            self.model,
            Optimizers([optimizer], steps, warmup=min(_WARM_UP, max(1, steps // 10))),
            loss_of,
            steps=steps,
            batch=config.batch,
            save_every_s=60 * config.save_minutes,
            say=self.say,
            check=None if seen is None else lambda: self._check(loss, seen),
            check_every_s=60 * config.check_minutes,
            stopped=self.stopped,
            share=share,
            parts=parts,
            states=StepStates(config.work / f"{self.stage}.states", self.model, optimizer, share),
        )
        self.model.eval()

    @property
    def _keeps_features(self) -> bool:
        return self.config.cache_features and not self.config.train_vision

    def _subset(self, studies: list[Study], most: int) -> list[Study]:
        """All of them, or as many as are wanted, drawn by the seed."""
        if most >= len(studies):
            return studies
        return [studies[number] for number in Order(len(studies), most, self.config.seed).batch_of(0)]

    def _material(self, studies: list[Study], answers: str) -> Material:
        """Studies with their pictures; for stage 3 with the answers of its teacher, the model as it is now."""
        config = self.config
        reader = ReadPictures(studies, self.loaded.image_config, config.loaders)
        self.readers.append(reader)
        if not self._keeps_features:
            material = Material(studies, reader, self.prompts)
        else:
            stored = StoredPictures(config.work, studies, self.loaded.image_config, self.model, DTYPES[config.dtype])
            stored.fill(reader, self.model, self.share, self.say)
            material = Material(studies, stored, self.prompts)
        if self.stage != "dcd":
            return material
        folder = config.work / answers
        write_answers(
            folder, self.model, studies, material.pictures, self.prompts, config, self.share,
            say=self.say, stopped=self.stopped,
        )  # fmt: skip
        try:
            kept = StoredTrajectories(folder, self.prompts.eos)
        except ValueError as error:
            raise TrainConfigError(f"key 'init': {error}") from None
        self.say(f"{answers}  " + "  ".join(f"{key} {value}" for key, value in kept.counts.items()))
        return replace(material, answers=kept)

    def _prepare(self) -> list[torch.nn.Parameter]:
        """Make the model ready to learn; returns what learns."""
        config, model = self.config, self.loaded.model
        model.requires_grad_(True)
        model.model.visual.requires_grad_(config.train_vision)
        if config.lora_rank:
            add_adapters(model, config.lora_rank, config.seed)
        if config.checkpointing:
            self.model.checkpoint_activations()
        for parameter in model.parameters():
            # updates are too small for bfloat16; sharded weights must all have one type
            if parameter.requires_grad or self.sharded:
                parameter.data = parameter.data.float()
        if self.sharded:
            shard(self.model, config.device, self.share.world, half=self.half)
        return [p for p in self.model.parameters() if p.requires_grad]

    def _check(self, loss: StudyLoss, material: Material) -> dict[str, float]:
        """The loss on studies that nothing is learnt from, and the texts of a few of them."""
        share, config = self.share, self.config
        world = share.world
        batches = max(1, material.count // world)

        def loss_of(number: int) -> Loss:
            batch = np.arange(number * world, (number + 1) * world) % material.count
            return loss(material, batch, np.array([share.rank]), _CHECK_NOISE + number)

        self.measured = {"loss": round(mean_loss(batches, loss_of, share), 4)}
        if config.checked and not self.sharded:  # sharded weights are there in a forward pass of all processes alone
            studies = material.studies[: config.checked]
            text = TextCheck(
                self.stage, studies, material.pictures, self.prompts, self.loaded.tokenizer,
                config.block_length, config.tau, config.longest, share,
            )  # fmt: skip
            self.measured |= text.scores(self.model)
        return self.measured
