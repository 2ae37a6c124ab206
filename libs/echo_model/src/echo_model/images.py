"""Pixels in, patches out: the image half of what a Qwen2.5-VL vision tower reads.

Patch order and resizing rules are those of the Qwen2-VL image processor (described in arXiv 2409.12191 and in the
`preprocessor_config.json` of every such checkpoint). Nothing here needs torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from echo_model.errors import CheckpointError, ImageError
from echo_model.json_files import read_json, read_json_if_there

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Picture = npt.NDArray[Any] | Image.Image

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_MAX_ASPECT = 200.0


@dataclass(frozen=True)
class ImageConfig:
    """How pictures become patches; the fields of a checkpoint's `preprocessor_config.json`.

    `image_size` is ours: when set, every picture is letterboxed into a black square of that edge (pixels) instead of
    being resized with its own aspect ratio between `min_pixels` and `max_pixels`.
    `max_image_pixels` bounds what is accepted before anything large is allocated.
    """

    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_mean: tuple[float, float, float] = _CLIP_MEAN
    image_std: tuple[float, float, float] = _CLIP_STD
    min_pixels: int = 3_136
    max_pixels: int = 2_250_000
    image_size: int | None = None
    max_image_pixels: int = 80_000_000

    @property
    def factor(self) -> int:
        """Edge in pixels of the square that becomes one language token."""
        return self.patch_size * self.merge_size

    @property
    def patch_dim(self) -> int:
        """Length of one flattened patch: 3 channels x temporal x patch x patch."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    def __post_init__(self) -> None:
        for name in ("patch_size", "temporal_patch_size", "merge_size", "min_pixels", "max_pixels", "max_image_pixels"):
            if getattr(self, name) < 1:
                raise CheckpointError(f"{name} {getattr(self, name)} must be at least 1")
        if self.min_pixels > self.max_pixels:
            raise CheckpointError(f"min_pixels {self.min_pixels} is more than max_pixels {self.max_pixels}")
        if min(self.image_std) <= 0:
            raise CheckpointError(f"image_std {self.image_std} must be positive")
        if self.image_size is not None and self.image_size % self.factor:
            raise CheckpointError(f"image_size {self.image_size} is no multiple of {self.factor} (patch x merge)")

    @classmethod
    def from_folder(cls, folder: Path) -> ImageConfig:
        """Read `preprocessor_config.json`, else what newer tools write into `processor_config.json` instead.

        Raises CheckpointError when neither is there or one is malformed.
        """
        path = folder / "preprocessor_config.json"
        if path.is_file():
            return cls._from_json(read_json(path), path.name)
        joint = read_json_if_there(folder / "processor_config.json").get("image_processor")
        if isinstance(joint, dict):
            return cls._from_json(joint, "processor_config.json")
        raise CheckpointError(
            f"{path.name} is missing: it says how pictures are cut for these weights. Weights are often published "
            "without it; copy it from the Qwen2.5-VL checkpoint that they were trained from (of the same size, such "
            "as Qwen2.5-VL-7B-Instruct) into this folder"
        )

    @classmethod
    def _from_json(cls, raw: dict[str, Any], name: str) -> ImageConfig:
        size = raw.get("size") or {}
        try:
            return cls(
                patch_size=int(raw.get("patch_size", 14)),
                temporal_patch_size=int(raw.get("temporal_patch_size", 2)),
                merge_size=int(raw.get("merge_size", 2)),
                image_mean=_triple(raw.get("image_mean", _CLIP_MEAN)),
                image_std=_triple(raw.get("image_std", _CLIP_STD)),
                min_pixels=int(raw.get("min_pixels") or size.get("shortest_edge") or 3_136),
                max_pixels=int(raw.get("max_pixels") or size.get("longest_edge") or 2_250_000),
                image_size=None if raw.get("image_size") is None else int(raw["image_size"]),
                max_image_pixels=int(raw.get("max_image_pixels", 80_000_000)),
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{name} has a value that cannot be used: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """The content of a `preprocessor_config.json` that `from_folder` reads back, and transformers understands."""
        return {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": self.patch_size,
            "temporal_patch_size": self.temporal_patch_size,
            "merge_size": self.merge_size,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
            "image_size": self.image_size,
            "max_image_pixels": self.max_image_pixels,
        }


def preprocess(image: Picture, cfg: ImageConfig) -> tuple[FloatArray, IntArray]:
    """Turn one picture into `(pixel_values, grid_thw)`.

    `image`: grey `(H, W)` or `(H, W, 1)` or RGB `(H, W, 3)` array, or a PIL image. uint8 is taken as it is; floats
    within [0, 1] count as fractions of full white; every other type or range is stretched from its minimum to its
    maximum. Returns float32 `(n_patches, 3 * temporal * patch * patch)` in merge-grouped order, and int64
    `(1, rows, columns)` counted in patches. Raises ImageError.
    """
    rgb = _to_rgb8(image, cfg)
    if cfg.image_size is not None:
        rgb = _letterbox(rgb, cfg.image_size)
    else:
        height, width = _target_size(rgb.height, rgb.width, cfg)
        if (width, height) != rgb.size:
            rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
    white = np.asarray(rgb, dtype=np.float32) / np.float32(255.0)
    pixels = (white - np.asarray(cfg.image_mean, np.float32)) / np.asarray(cfg.image_std, np.float32)
    return _patchify(pixels.astype(np.float32, copy=False), cfg)


def image_grid(height: int, width: int, cfg: ImageConfig) -> tuple[int, int, int]:
    """The `grid_thw` that `preprocess` gives a picture of this size (pixels). Raises ImageError."""
    rows, columns = _target_size(height, width, cfg)
    return 1, rows // cfg.patch_size, columns // cfg.patch_size


def _target_size(height: int, width: int, cfg: ImageConfig) -> tuple[int, int]:
    """Height and width in pixels that a picture is brought to."""
    if cfg.image_size is not None:
        return cfg.image_size, cfg.image_size
    return smart_resize(height, width, cfg.factor, cfg.min_pixels, cfg.max_pixels)


def n_image_tokens(grid_thw: npt.ArrayLike, cfg: ImageConfig) -> int:
    """Number of `<|image_pad|>` tokens that stand for one picture of this grid."""
    return int(np.prod(np.asarray(grid_thw, dtype=np.int64))) // cfg.merge_size**2


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Nearest size whose edges are multiples of `factor`, whose area lies in the bounds, and whose shape is kept.

    Returns (height, width) in pixels. Raises ImageError for shapes longer than 200 : 1.
    """
    if max(height, width) > _MAX_ASPECT * min(height, width):
        raise ImageError("aspect_ratio", f"{width} x {height} pixels is longer than {_MAX_ASPECT:.0f} : 1")
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def read_image(path: Path, max_image_pixels: int = ImageConfig.max_image_pixels) -> Picture:
    """Read a PNG, JPEG or `.npy` file. The size is checked before pixels are decoded. Raises ImageError."""
    if not path.is_file():
        raise ImageError("not_an_image", f"{path}: no such file")
    if path.suffix.lower() == ".npy":
        try:
            array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ImageError("not_an_image", f"{path}: not a NumPy array file ({error})") from None
        _check_size(array.shape[:2], max_image_pixels)
        return np.array(array)
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            _check_size((picture.height, picture.width), max_image_pixels)
            picture.load()
            return picture
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise ImageError("not_an_image", f"{path}: no PNG or JPEG file") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError("not_an_image", f"{path}: damaged PNG or JPEG file ({error})") from None


def read_size(path: Path, max_image_pixels: int = ImageConfig.max_image_pixels) -> tuple[int, int]:
    """Height and width of a file that `read_image` reads, from its header alone. Raises ImageError."""
    if path.suffix.lower() == ".npy":
        try:
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape[:2]
        except (ValueError, OSError, EOFError) as error:
            raise ImageError("not_an_image", f"{path}: not a NumPy array file ({error})") from None
    else:
        try:
            with Image.open(path, formats=("PNG", "JPEG")) as picture:
                shape = (picture.height, picture.width)
        except Image.DecompressionBombError as error:
            raise ImageError("too_large", f"{path}: {error}") from None
        except (UnidentifiedImageError, OSError) as error:
            raise ImageError("not_an_image", f"{path}: no PNG or JPEG file ({error})") from None
    _check_size(shape, max_image_pixels)
    return int(shape[0]), int(shape[1])


def _to_rgb8(image: Picture, cfg: ImageConfig) -> Image.Image:
    """Any accepted picture as 8-bit RGB."""
    if isinstance(image, Image.Image):
        _check_size((image.height, image.width), cfg.max_image_pixels)
        if image.mode not in {"I", "F"} and not image.mode.startswith("I;"):
            return image if image.mode == "RGB" else image.convert("RGB")
        image = np.asarray(image)
    if not isinstance(image, np.ndarray):
        raise ImageError("wrong_type", f"a NumPy array or a PIL image is wanted, not {type(image).__name__}")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim != 2 and not (image.ndim == 3 and image.shape[2] == 3):
        raise ImageError("wrong_rank", f"shape {image.shape} is neither (H, W), (H, W, 1) nor (H, W, 3)")
    _check_size(image.shape[:2], cfg.max_image_pixels)
    return Image.fromarray(_to_uint8(image)).convert("RGB")


def _to_uint8(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Grey values on the 8-bit scale; see `preprocess` for the rule."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "uif":
        raise ImageError("wrong_type", f"values of type {array.dtype} are no grey values")
    if not np.isfinite(array).all():
        raise ImageError("not_finite", "the image holds NaN or infinite values")
    values = array.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if array.dtype.kind == "f" and low >= 0.0 and high <= 1.0:
        low, high = 0.0, 1.0
    values = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.rint(values * 255.0).astype(np.uint8)


def _check_size(shape: tuple[int, ...], limit: int) -> None:
    """Refuse pictures without pixels and picture bombs."""
    if len(shape) != 2 or 0 in shape:
        raise ImageError("empty", f"the image has no pixels (shape {shape})")
    if shape[0] * shape[1] > limit:
        raise ImageError("too_large", f"{shape[1]} x {shape[0]} pixels is more than the limit of {limit} pixels")


def _letterbox(picture: Image.Image, edge: int) -> Image.Image:
    """Scale the long side to `edge` and centre the rest on black."""
    if picture.size == (edge, edge):
        return picture
    scale = edge / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (edge, edge))
    square.paste(resized, ((edge - width) // 2, (edge - height) // 2))
    return square


def _patchify(pixels: FloatArray, cfg: ImageConfig) -> tuple[FloatArray, IntArray]:
    """Cut `(H, W, 3)` into flat patches; the merge x merge patches that become one token lie together."""
    patch, merge = cfg.patch_size, cfg.merge_size
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    cut = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    cut = cut.transpose(0, 3, 1, 4, 6, 2, 5)  # token row, token column, row and column in the token, channel, y, x
    flat = np.repeat(cut.reshape(rows * columns, 3, 1, patch * patch), cfg.temporal_patch_size, axis=2)
    return flat.reshape(rows * columns, cfg.patch_dim), np.array([1, rows, columns], dtype=np.int64)


def _triple(value: Any) -> tuple[float, float, float]:
    first, second, third = (float(part) for part in value)
    return first, second, third
