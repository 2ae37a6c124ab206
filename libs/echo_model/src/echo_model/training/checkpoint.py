"""Writes a trained demonstration model as a Hugging Face checkpoint folder: safetensors, settings, tokenizer, card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from echo_model.data.phantoms import generate_phantom
from echo_model.data.tokenizer import EOS, MASK, PAD, save_tokenizer, special_ids
from echo_model.domain_score import FILE_NAME, fit_domain
from echo_model.guard_settings import DEFAULT_GATE
from echo_model.model import load_model
from echo_model.training.shape import IMAGES, QUESTION

BLOCK: Final = 8
EVALUATION_FILE: Final = "evaluation.json"
MODEL_ID: Final = "echo-demo-phantom"
_DOMAIN_SEED: Final = 31_415
_DOMAIN_IMAGES: Final = 1_200
_STAGES: Final = {
    "ar": "left to right",
    "rad": "RAD, several steps a block",
    "rad_one_step": "RAD, forced to one step",
    "dcd_one_step": "DCD, one step",
}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def generation_settings(tokenizer: Tokenizer, denoising_steps: int = BLOCK) -> dict[str, Any]:
    """Content of ``generation_config.json``."""
    ids = special_ids(tokenizer)
    return {
        "model_id": MODEL_ID,
        "eos_token_id": ids[EOS],
        "pad_token_id": ids[PAD],
        "mask_token_id": ids[MASK],
        "block_length": BLOCK,
        "denoising_steps": denoising_steps,
        "guards": {"gate": DEFAULT_GATE, "redenoise": True},
        "remasking_strategy": "low_confidence_dynamic",
        "confidence_threshold": 0.85,
        "gen_length": 160,
        "max_images": 1,
        "instruction": QUESTION,
    }


def write_checkpoint(model: Any, tokenizer: Tokenizer, out: Path, *, denoising_steps: int = BLOCK) -> None:
    """Write weights (float16; a tied head is left out) and every settings file into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        k: v.detach().to(torch.float16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "dtype": "float32"}
    config["mask_token_id"] = special_ids(tokenizer)[MASK]
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", generation_settings(tokenizer, denoising_steps))
    _write_json(out / "preprocessor_config.json", IMAGES.to_json())
    save_tokenizer(tokenizer, out)


def write_domain(out: Path, *, images: int = _DOMAIN_IMAGES, say: Callable[[str], None] = lambda line: None) -> None:
    """Fit and write what tells an image of another kind from a phantom."""

    def progress(done: int) -> None:
        if done % 200 == 0:
            say(f"domain  {done}/{images}")

    pictures = (generate_phantom(_DOMAIN_SEED, index).image for index in range(images))
    fit_domain(load_model(out), pictures, progress).save(out / FILE_NAME)


def write_card(
    out: Path,
    result: dict[str, Any],
    plan: dict[str, Any],
    stages: dict[str, dict[str, float]],
    *,
    start: str = "",
) -> None:
    """Write ``evaluation.json`` and the model card with the measured figures.

    ``stages``: scores of the models of the stages that came before, by stage and way of decoding. ``start``: a
    sentence on what was not trained from scratch.
    """
    _write_json(out / EVALUATION_FILE, {"phantoms": result, "stages": stages, "plan": plan})
    on_start = f"\n{start}\n" if start else ""
    measures = {
        f"macro F1 over {len(result['per_finding'])} findings": "macro_f1",
        "micro F1": "micro_f1",
        "right side, where a side is stated": "laterality_accuracy",
        "reports with every finding and side right": "exact",
    }
    columns = (result, result["controls"]["blank_image"], result["controls"]["next_image"])
    totals = "\n".join(
        f"| {label} | {' | '.join(f'{column[key]:.3f}' for column in columns)} |" for label, key in measures.items()
    )
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {s['f1']:.3f} | {s['precision']:.3f} | {s['recall']:.3f} | {s['tp'] + s['fn']} |"
        for name, s in result["per_finding"].items()
    )
    keys = ("macro_f1", "lowest_f1", "laterality_accuracy", "garbled_rate", "tokens_per_forward")
    staged = "\n".join(
        f"| {_STAGES.get(name, name)} | {' | '.join(f'{scores[key]:.3f}' for key in keys)} |"
        for name, scores in stages.items()
    )
    (out / "MODEL_CARD.md").write_text(
        f"""# {MODEL_ID}

A demonstration of the program, **not a medical device**. It was trained only on PhantomCXR, synthetic drawings of
chest radiographs that the program makes itself. **It has never seen a patient, and must not be used for one.** What it
writes about a real radiograph means nothing.

## What it is

The architecture of Qwen2.5-VL with about six million weights: a vision tower of 4 layers reads a grey image of
168 x 168 pixels (36 visual tokens), a language model of 4 layers writes the report in English by block diffusion:
blocks of {BLOCK} tokens, each in one forward pass. A wrong kind of image is flagged by `domain.safetensors`. Chinese
is not among what it was trained on.

## How it was trained

On {plan["phantoms"]:,} phantoms (series {plan["train_seed"]}), one thread of a CPU:

1. the vision tower as a classifier with labels for every visual token,
   {plan["tower_first"] + plan["tower_samples"]:,} samples;
2. the language model left to right with the tower frozen, {plan["ar_samples"]:,} samples;
3. block diffusion by RAD (arXiv 2604.09450) with two complementary noisy copies, {plan["rad_samples"]:,} samples;
4. DCD: one step a block, taught by {plan["teacher_reports"]:,} reports that the model of step 3 decoded with the
   canonical rule (of nearly equal tokens always the same one); reports that find anything else than the phantom's
   own one are left out; {plan["dcd_samples"]:,} samples.
{on_start}
To train it again: `make demo-model` (seeds fixed; sums may round differently on another processor).

## What was measured

{result["count"]} phantoms of a series that no training has seen (seed {result["seed"]}), with the settings it ships
with, findings read from the text by the rules of `echo_model.data.findings`:

| | this model | given a blank image | scored on another image |
|---|---|---|---|
{totals}

| finding | F1 | precision | recall | phantoms with it |
|---|---|---|---|---|
{rows}

The models of all stages on the same phantoms, guard rails off:

| | macro F1 | lowest F1 of a finding | right side | garbled sentences | tokens a forward |
|---|---|---|---|---|---|
{staged}

## Licence

The same as the program's. Everything it was trained on was drawn by the program.
""",
        encoding="utf-8",
    )
