"""`echo-model train`: one stage of a training, driven by a file, from checkpoint to checkpoint.

What it does on phantoms is here, on a corpus in `study_training`.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer

from echo_model.data.tokenizer import special_ids, train_tokenizer
from echo_model.domain_score import FILE_NAME
from echo_model.guards import LEXICON_FILE, Lexicon
from echo_model.model import load_model
from echo_model.training.checkpoint import generation_settings, write_checkpoint
from echo_model.training.config import StageName, TrainConfig, TrainConfigError
from echo_model.training.corpus import Corpus, training_report
from echo_model.training.dcd import Distillation, dcd_loss
from echo_model.training.features import Features
from echo_model.training.lora import add_adapters, merge_adapters
from echo_model.training.packing import packed_rad_loss
from echo_model.training.parallel import Share, share_of_this_process
from echo_model.training.run_note import claim
from echo_model.training.shape import IMAGE_SIZE, QUESTION, TEXT_HIDDEN, new_model, prompt_layout
from echo_model.training.study_training import train_on_corpus
from echo_model.training.text_stages import Loss, TextData, ar_loss, rad_loss, train_text
from echo_model.training.texts import tokenise
from echo_model.training.tower import train_tower

_TOKENIZER_REPORTS = 4_000
_NOISE = 1_000_003  # seeds of two series of noise do not meet
Say = Callable[[str], None]


def train(
    stage: StageName,
    config: TrainConfig,
    *,
    resume: bool = False,
    say: Say = lambda line: None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Run a stage to its end and write the checkpoint.

    Without `resume` the work folder must hold no state of this stage; with it, a run that was cut off goes on exactly
    where its last saved state was, and the file must still say the same. Raises TrainConfigError; Stopped, with the
    state saved, as soon as `stopped` says so.
    """
    if config.corpus is not None:
        train_on_corpus(stage, config, resume=resume, say=say, stopped=stopped)
        return
    torch.set_num_threads(config.threads)
    share = share_of_this_process()
    if share.world > 1 and (config.init is None or config.packed_tokens):
        raise TrainConfigError("several processes need 'init', and rows that are not packed")
    reports = [training_report(config.seed, index) for index in range(config.phantoms)]
    with share.first_alone():
        config.work.mkdir(parents=True, exist_ok=True)
        claim(stage, config, resume=resume or share.rank > 0)
        model, tokenizer = _start(config, [report.text for report in reports[:_TOKENIZER_REPORTS]])
        features = _features(stage, config, model.model.visual, say)
    layout = prompt_layout(model, tokenizer)
    data = TextData(features, [tokenise(tokenizer, report) for report in reports], layout)
    model.requires_grad_(True)
    adapters = add_adapters(model, config.lora_rank, config.seed) if config.lora_rank else None
    train_text(
        stage,
        model,
        config.work,
        _loss(stage, config, model, data, share),
        data.lengths,
        samples=config.samples,
        rate=config.learning_rate,
        batch=config.batch,
        say=say,
        stopped=stopped,
        share=share,
    )
    if adapters is not None:
        model = merge_adapters(adapters)
    if share.rank == 0:
        _finish(stage, config, model, tokenizer, Lexicon.fit(report.text for report in reports))
        say(f"{stage}  written to {config.out}")


def _features(stage: StageName, config: TrainConfig, visual: Any, say: Say) -> Features:
    """The corpus as the vision tower sees it; the tower is trained first where there is no initial checkpoint."""
    try:
        corpus = Corpus(config.work / f"corpus-{config.seed}", config.seed, config.phantoms)
    except ValueError as error:
        raise TrainConfigError(f"key 'phantoms': {error}") from None
    corpus.start()
    try:
        if config.init is None:
            train_tower(
                visual,
                corpus,
                config.work,
                samples=config.tower_samples,
                schedule=config.tower_samples,
                seed=config.seed,
                say=say,
            )
        # The visual tokens of one tower are of no use to another, so each stage keeps its own.
        folder = config.work / f"features-{stage}"
        folder.mkdir(exist_ok=True)
        features = Features(folder, config.phantoms)
        features.fill(visual, corpus, config.phantoms, say=say)
    finally:
        corpus.stop()
    return features


def _start(config: TrainConfig, texts: list[str]) -> tuple[Any, Tokenizer]:
    """The model and its tokenizer: of the initial checkpoint, or fresh ones."""
    if config.init is None:
        tokenizer = train_tokenizer(texts, QUESTION)
        return new_model(tokenizer, config.seed), tokenizer
    loaded = load_model(config.init)
    hidden, edge = loaded.model.config.text_config.hidden_size, loaded.image_config.image_size
    if (hidden, edge) != (TEXT_HIDDEN, IMAGE_SIZE) or not loaded.model.config.tie_word_embeddings:
        raise TrainConfigError(
            f"key 'init': {config.init} has not the demo model's shape (hidden size {TEXT_HIDDEN}, pictures of "
            f"{IMAGE_SIZE} pixels, tied embeddings), the only one that can be trained on phantoms so far"
        )
    try:
        special_ids(loaded.tokenizer)
    except KeyError as error:
        raise TrainConfigError(f"key 'init': {config.init}: {error.args[0]}") from None
    return loaded.model, loaded.tokenizer


def _loss(
    stage: StageName, config: TrainConfig, model: Any, data: TextData, share: Share
) -> Callable[[Any, int], Loss]:
    """The stage's loss; batch and noise depend on the step alone, so that resuming is exact."""
    if stage == "ar":
        return lambda rows, step: ar_loss(model, data, rows, config.decisive_weight, share)
    if stage == "rad":

        def rad(rows: Any, step: int) -> Loss:
            noise = torch.Generator().manual_seed(config.seed * _NOISE + step)
            if config.packed_tokens:
                return packed_rad_loss(model, data, rows, config.block_length, noise, config.packed_tokens)
            return rad_loss(model, data, rows, config.block_length, noise, share, config.rad_decisive_weight)

        return rad
    teacher = copy.deepcopy(model).requires_grad_(False).eval()
    options = Distillation(
        tau=config.tau,
        top_k=config.top_k,
        canonical=config.canonical or None,
        weighted=config.weighted,
        eos_weight=config.eos_weight,
        ce_weight=config.ce_weight,
        reverse=config.reverse_kl,
    )
    return lambda rows, step: dcd_loss(model, teacher, data, rows, config.block_length, options, share)


def _finish(stage: StageName, config: TrainConfig, model: Any, tokenizer: Tokenizer, lexicon: Lexicon) -> None:
    """Write the checkpoint, whole or not at all, with how it is meant to be decoded."""
    part = config.out.with_name(f"{config.out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    write_checkpoint(model, tokenizer, part)
    settings = generation_settings(tokenizer) | {"model_id": f"echo-phantom-{stage}"}
    if stage != "ar":  # an autoregressive model cannot be decoded in blocks yet; what is written is for the next stage
        steps = 1 if stage == "dcd" else config.block_length
        settings |= {"block_length": config.block_length, "denoising_steps": steps}
    (part / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    lexicon.save(part / LEXICON_FILE)
    if config.init is not None and (config.init / FILE_NAME).is_file():
        shutil.copyfile(config.init / FILE_NAME, part / FILE_NAME)  # of the tower, which was not trained here
    part.rename(config.out)
