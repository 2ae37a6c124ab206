"""CheXbert labels and the similarity of CheXbert's embeddings (SemScore), from weights in a local folder.

The folder holds `config.json` and `tokenizer.json` of the BERT that CheXbert was trained from (bert-base-uncased) and
its weights as `model.safetensors`, under the names of the published file with or without `module.`. The published
weights are a pickle and carry their own licence: nothing is fetched or unpickled here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from echo_model.errors import CheckpointError
from echo_model.json_files import read_json

CONDITIONS: Final = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip
"""In the order of the heads, which tell blank, positive, negative, uncertain; the last one blank and positive alone."""

_POSITIVE: Final = (1, 3)
"""Positive and uncertain count as said, as usual where reports are compared."""
_LONGEST: Final = 512


class CheXbert:
    """The labeller. Raises CheckpointError when the folder does not hold it."""

    def __init__(self, folder: Path) -> None:
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder / name} is missing: CheXbert's weights as safetensors are wanted there")
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(_LONGEST)
        self._tokenizer.enable_padding()
        tensors = {key.removeprefix("module."): value for key, value in load_file(folder / "model.safetensors").items()}
        self._bert: Any = BertModel(BertConfig(**read_json(folder / "config.json")))
        torch.nn.Module.eval(self._bert)
        bert = {key.removeprefix("bert."): value for key, value in tensors.items() if key.startswith("bert.")}
        missing = [
            name for name in self._bert.load_state_dict(bert, strict=False).missing_keys if "position_ids" not in name
        ]
        heads = [
            (tensors.get(f"linear_heads.{number}.weight"), tensors.get(f"linear_heads.{number}.bias"))
            for number in range(len(CONDITIONS))
        ]
        self._heads = [(weight, bias) for weight, bias in heads if weight is not None and bias is not None]
        if missing or len(self._heads) < len(CONDITIONS):
            what = missing[0] if missing else "a linear head"
            raise CheckpointError(f"{folder}: {what} is missing from CheXbert's weights")

    @torch.inference_mode()
    def read(self, texts: Sequence[str], *, batch: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (n, hidden) and whether each condition is said (n, 14), bool."""
        embeddings, said = [], []
        for start in range(0, len(texts), batch):
            encoded = self._tokenizer.encode_batch([" ".join(text.split()) for text in texts[start : start + batch]])
            ids = torch.tensor([row.ids for row in encoded])
            mask = torch.tensor([row.attention_mask for row in encoded])
            first = self._bert(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
            classes = [torch.nn.functional.linear(first, *head).argmax(-1) for head in self._heads]
            embeddings.append(first)
            said.append(torch.isin(torch.stack(classes, dim=1), torch.tensor(_POSITIVE)))
        return torch.cat(embeddings), torch.cat(said)

    def scores(self, texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """``chexbert_micro_f1``, ``chexbert_macro_f1`` (14 conditions) and ``semscore``: mean cosine (-1 to 1)."""
        made, told = self.read(texts)
        wanted, there = self.read(references)
        tp, wrong = (told & there).sum(0), (told ^ there).sum(0)
        f1 = 2 * tp / (2 * tp + wrong).clamp(min=1)
        return {
            "chexbert_micro_f1": round(float(2 * tp.sum() / (2 * tp.sum() + wrong.sum()).clamp(min=1)), 4),
            "chexbert_macro_f1": round(float(f1.mean()), 4),
            "semscore": round(float(torch.cosine_similarity(made, wanted, dim=1).mean()), 4),
        }
