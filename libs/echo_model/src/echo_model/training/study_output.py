"""The checkpoint that a stage on a corpus writes: the initial one with what was learnt, and how it came about."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch

from echo_model.convert import write_folder
from echo_model.domain_score import FILE_NAME
from echo_model.guards import LEXICON_FILE, Lexicon
from echo_model.images import ImageConfig
from echo_model.model import DTYPES, LoadedModel, load_model
from echo_model.training.config import StageName, TrainConfig
from echo_model.training.lora import add_adapters, merge_adapters
from echo_model.training.row_model import RowModel
from echo_model.training.studies import Prompts, Studies

_STAGES: Final = {
    "ar": "left to right (stage 1); it is no model to decode in blocks with yet",
    "rad": "block diffusion by RAD (stage 2, arXiv 2604.09450), several steps a block",
    "dcd": "DCD (stage 3, arXiv 2604.09450), one step a block",
}


def load_initial(config: TrainConfig) -> LoadedModel:
    """The checkpoint a stage begins with, in the type of the computation, its pictures no larger than the file says.

    A new mask token starts as the mean of all others: the row it gets was never trained, and may hold zeros.
    """
    assert config.init is not None
    loaded = load_model(config.init, "cpu", config.dtype, add_mask=True)
    if loaded.mask_added:
        embedding = loaded.model.model.language_model.embed_tokens.weight.data
        used = sorted(set(loaded.tokenizer.get_vocab().values()) - {loaded.mask_token_id})
        embedding[loaded.mask_token_id] = embedding[used].float().mean(dim=0).to(embedding.dtype)
    return replace(loaded, image_config=smaller(loaded.image_config, config.max_pixels))


def smaller(pictures: ImageConfig, most: int) -> ImageConfig:
    """The same settings with pictures of `most` pixels at most."""
    return replace(pictures, max_pixels=max(pictures.min_pixels, min(pictures.max_pixels, most)))


def write_trained(
    stage: StageName,
    config: TrainConfig,
    weights: Mapping[str, torch.Tensor],
    prompts: Prompts,
    studies: Studies,
    check: Mapping[str, float],
) -> None:
    """Write ``config.out``, whole or not at all. ``weights``: what was learnt, in the names of a `RowModel`."""
    assert config.init is not None
    initial = load_initial(replace(config, dtype="float32"))
    holder = RowModel(initial.model)
    adapters = add_adapters(initial.model, config.lora_rank, config.seed) if config.lora_rank else None
    surplus = holder.load_state_dict(dict(weights), strict=False).unexpected_keys
    if surplus:
        raise ValueError(f"{surplus[0]} was learnt but is no weight of the model")
    model = initial.model if adapters is None else merge_adapters(adapters)
    longest = max(len(study.report.ids) for study in studies.train)
    block = config.block_length
    settings = initial.generation_config | {
        "model_id": f"{config.out.name}-{stage}",
        "eos_token_id": [prompts.eos, *(end for end in initial.eos_token_ids if end != prompts.eos)],
        "instruction": prompts.instruction,
        "max_images": max(len(study.pictures) for study in studies.train),
        "gen_length": -(-(longest + 1) // block) * block,
        "block_length": block,
        # an autoregressive model cannot be decoded in blocks yet; what is written is for the next stage
        "denoising_steps": 1 if stage == "dcd" else block,
        "remasking_strategy": "low_confidence_dynamic",
        "confidence_threshold": config.tau,
    }
    part = config.out.with_name(f"{config.out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    trained = replace(initial, model=model.to(DTYPES[config.dtype]), generation_config=settings)
    write_folder(trained, config.init, part, config.dtype)
    Lexicon.fit(study.text for study in studies.train).save(part / LEXICON_FILE)
    if config.train_vision:
        (part / FILE_NAME).unlink(missing_ok=True)  # statistics of the tower as it was
    for name in ("README.md", "evaluation.json"):
        (part / name).unlink(missing_ok=True)  # they speak of the model that this one came from
    _write_card(part, stage, config, initial, studies, check)
    part.rename(config.out)


def _write_card(
    folder: Path,
    stage: StageName,
    config: TrainConfig,
    initial: LoadedModel,
    studies: Studies,
    check: Mapping[str, float],
) -> None:
    keys: dict[str, Any] = {name: value for name, value in asdict(config).items() if not isinstance(value, Path)}
    measured = "\n".join(f"| {name} | {value} |" for name, value in check.items()) or "| nothing | |"
    left_out = ", ".join(f"{count} {reason}" for reason, count in studies.left_out.items()) or "none"
    (folder / "MODEL_CARD.md").write_text(
        f"""# {config.out.name}

**Not a medical device.** A research checkpoint that writes draft reports of chest radiographs. Whoever uses it has to
evaluate it on data of their own, and a radiologist has to verify every report.

Trained {_STAGES[stage]}.

- Started from `{initial.model_id}` (weights {initial.revision}); its licence and terms go on to hold.
- Corpus {studies.digest}: {len(studies.train)} studies of the split `train` (left out: {left_out}). The terms of the
  corpus hold for the weights as well.
- {config.samples} samples in batches of {config.batch}.

Measured on a few studies of the split `validate` at the end, which is no evaluation (`echo-model evaluate`):

| measure | value |
|---|---|
{measured}

Settings:

```json
{json.dumps(keys, indent=2)}
```
""",
        encoding="utf-8",
    )
