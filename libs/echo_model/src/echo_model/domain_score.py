"""How far an image is from those the model was trained on.

Two groups of numbers describe an image: what the vision tower makes of it (mean and spread of its output tokens) and
plain grey-value and texture statistics of the pixels. Each group is modelled as one Gaussian with a shrunk correlation
matrix; the distance is Mahalanobis', divided by the distance that all but one in a thousand held-out training-like
images keep. The score is the larger of the two: above 1 is out of domain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from echo_model.errors import CheckpointError
from echo_model.images import ImageConfig, Picture, preprocess

if TYPE_CHECKING:
    from echo_model.model import LoadedModel

FILE_NAME = "domain.safetensors"
_GROUPS = ("tower", "pixels")
_FIELDS = ("mean", "scale", "whitening", "threshold")
_SHRINKAGE = 0.1
_MARGIN = 1.1
_HELD_OUT = 3  # one image in three sets the threshold


@dataclass(frozen=True)
class _Gaussian:
    """Mean and scale (d,), whitening matrix (d, d) of the scaled values, and the distance that counts as 1."""

    mean: torch.Tensor
    scale: torch.Tensor
    whitening: torch.Tensor
    threshold: torch.Tensor

    def distance(self, features: torch.Tensor) -> torch.Tensor:
        """Distance of each row of `(n, d)`, about 1 for typical rows before the threshold is applied."""
        standard = (features.double() - self.mean.double()) / self.scale.double()
        return (standard @ self.whitening.double().T).square().mean(dim=-1).sqrt()


@dataclass(frozen=True)
class DomainModel:
    """Statistics of the training images."""

    groups: Mapping[str, _Gaussian]

    def parts(self, features: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Score of one image's `describe_image` features by each group of numbers."""
        return {
            name: float(gaussian.distance(features[name].unsqueeze(0))) / float(gaussian.threshold)
            for name, gaussian in self.groups.items()
        }

    def score(self, features: Mapping[str, torch.Tensor]) -> float:
        """The larger of the parts; above 1 is out of domain."""
        return max(self.parts(features).values())

    def save(self, path: Path) -> None:
        """Write the statistics as safetensors."""
        tensors = {f"{name}.{field}": getattr(self.groups[name], field) for name in _GROUPS for field in _FIELDS}
        save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, path)
        path.chmod(0o644)  # safetensors writes for the owner alone; a service runs as someone else

    @classmethod
    def load(cls, path: Path) -> DomainModel:
        """Read what `save` wrote. Raises CheckpointError."""
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path.name} is damaged: {error}") from error
        absent = [f"{name}.{field}" for name in _GROUPS for field in _FIELDS if f"{name}.{field}" not in tensors]
        if absent:
            raise CheckpointError(f"{path.name} lacks {absent[0]}")
        return cls({name: _Gaussian(**{field: tensors[f"{name}.{field}"] for field in _FIELDS}) for name in _GROUPS})


def fit_domain(
    loaded: LoadedModel, images: Iterable[Picture], progress: Callable[[int], None] | None = None
) -> DomainModel:
    """Fit the statistics on training-like images (1,000 or more are wanted); one third of them sets the thresholds.

    `progress` is called with the number of images done.
    """
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in _GROUPS}
    for count, image in enumerate(images, start=1):
        for name, vector in image_features(loaded, image).items():
            rows[name].append(vector)
        if progress is not None:
            progress(count)
    if len(rows[_GROUPS[0]]) < 2 * _HELD_OUT:
        raise ValueError(f"{len(rows[_GROUPS[0]])} images are too few to fit a domain model")
    return DomainModel({name: _fit(torch.stack(rows[name])) for name in _GROUPS})


@torch.inference_mode()
def image_features(loaded: LoadedModel, image: Picture) -> dict[str, torch.Tensor]:
    """Both feature groups of one image, with a pass of the vision tower."""
    pixels, grid = preprocess(image, loaded.image_config)
    visual = loaded.model.model.visual
    values = torch.from_numpy(pixels).to(loaded.device)
    weights = visual.patch_embed.proj.weight
    tower = visual(values.to(weights.dtype), grid_thw=torch.from_numpy(grid).unsqueeze(0).to(loaded.device))
    return describe_image(tower.pooler_output, values, loaded.image_config)


def describe_image(tower: torch.Tensor, pixel_values: torch.Tensor, cfg: ImageConfig) -> dict[str, torch.Tensor]:
    """Feature groups from the tower's output `(tokens, hidden)` and the patches `(n_patches, patch_dim)`."""
    tokens = tower.double().cpu()
    grey = pixel_values.double().cpu().reshape(-1, 3, cfg.temporal_patch_size, cfg.patch_size, cfg.patch_size)[:, 0, 0]
    across, down = grey.diff(dim=2), grey.diff(dim=1)
    levels = torch.tensor([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98], dtype=torch.float64)
    texture = across.diff(dim=2).abs().mean(dim=(1, 2))
    pixels = [
        grey.flatten().quantile(levels),
        torch.stack([grey.mean(), grey.std(), across.abs().mean(), down.abs().mean()]),
        grey.std(dim=(1, 2)).quantile(levels),
        texture.clamp_min(1e-6).log().quantile(levels),
    ]
    return {"tower": torch.cat([tokens.mean(0), tokens.std(0)]), "pixels": torch.cat(pixels)}


def _fit(rows: torch.Tensor) -> _Gaussian:
    """One Gaussian from `(n, d)` rows."""
    held_out = torch.arange(rows.shape[0]) % _HELD_OUT == 0
    seen = rows[~held_out]
    mean, scale = seen.mean(0), seen.std(0).clamp_min(1e-6)
    standard = (seen - mean) / scale
    identity = torch.eye(rows.shape[1], dtype=rows.dtype)
    correlation = standard.T @ standard / (seen.shape[0] - 1)
    shrunk = (1.0 - _SHRINKAGE) * correlation + _SHRINKAGE * identity
    whitening = torch.linalg.inv(torch.linalg.cholesky(shrunk))
    loose = _Gaussian(mean, scale, whitening, torch.ones(1))
    return _Gaussian(mean, scale, whitening, _MARGIN * loose.distance(rows[held_out]).quantile(0.999).reshape(1))
