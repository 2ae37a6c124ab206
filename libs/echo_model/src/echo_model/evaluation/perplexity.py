"""How well a text reads to a left-to-right model that sees the same image: its perplexity under that judge."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from echo_model.decoding import prepare_prompt
from echo_model.images import Picture, n_image_tokens, preprocess
from echo_model.model import LoadedModel
from echo_model.prompt import build_prompt


class Judge:
    """Scores texts under a model trained left to right (``echo-model train ar``).

    A block-diffusion model is no judge: it was not trained to continue a text word by word.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._nats = 0.0
        self._tokens = 0

    @torch.inference_mode()
    def add(self, image: Picture | Sequence[Picture], text: str) -> float:
        """Take a text on an image or a study's views into account; returns its mean negative log-likelihood.

        In nats a token; the end of the text counts as one. Raises ImageError.
        """
        loaded, model = self._loaded, self._loaded.model
        views = list(image) if isinstance(image, Sequence) else [image]
        made = [preprocess(view, loaded.image_config) for view in views]
        grids = np.stack([grid for _, grid in made])
        counts = [n_image_tokens(grid, loaded.image_config) for grid in grids]
        instruction = loaded.generation_config.get("instruction")
        prompt_ids = build_prompt(loaded.tokenizer, counts, instruction=instruction)
        prompt = prepare_prompt(
            model,
            torch.tensor(prompt_ids),
            torch.from_numpy(np.concatenate([pixels for pixels, _ in made])).to(loaded.device),
            torch.from_numpy(grids),
        )
        answer = [*loaded.tokenizer.encode(text, add_special_tokens=False).ids, loaded.eos_token_ids[0]]
        ids = torch.tensor(answer, device=loaded.device)
        language = model.model.language_model
        embeds = torch.cat([prompt.embeds, language.embed_tokens(ids[:-1])[None]], dim=1)
        length, whole = prompt.length, prompt.length + len(answer) - 1
        later = torch.arange(length, whole, device=loaded.device).expand(3, 1, -1) + prompt.rope_delta
        mask = torch.ones(whole, whole, dtype=torch.bool, device=loaded.device).tril()[None, None]
        hidden = language(
            inputs_embeds=embeds,
            position_ids=torch.cat([prompt.positions, later], dim=-1),
            attention_mask={"full_attention": mask},
            use_cache=False,
        ).last_hidden_state
        logits = model.lm_head(hidden[0, length - 1 :]).float()
        nats = float(torch.nn.functional.cross_entropy(logits, ids, reduction="sum"))
        self._nats += nats
        self._tokens += len(answer)
        return nats / len(answer)

    def add_all(self, images: Sequence[Picture | Sequence[Picture]], texts: Sequence[str]) -> None:
        """`add` for many."""
        for image, text in zip(images, texts, strict=True):
            self.add(image, text)

    @property
    def perplexity(self) -> float:
        """exp of the mean over all tokens so far. Raises ValueError when there are none."""
        if not self._tokens:
            raise ValueError("no text was judged")
        return math.exp(self._nats / self._tokens)
