from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from echo_model.errors import CheckpointError, ImageError
from echo_model.images import (
    ImageConfig,
    image_grid,
    n_image_tokens,
    preprocess,
    read_image,
    read_size,
    smart_resize,
)

QWEN = ImageConfig(max_pixels=100_000)
SQUARE = ImageConfig(image_size=168)


def noise(*shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(100, 150, 3), (700, 600, 3), (30, 30, 3), (57, 400, 3)])
def test_patches_equal_those_of_the_transformers_image_processor(shape: tuple[int, ...]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(min_pixels=QWEN.min_pixels, max_pixels=QWEN.max_pixels)
    theirs = processor(images=[noise(*shape)], return_tensors="np")
    pixels, grid = preprocess(noise(*shape), QWEN)
    assert grid.tolist() == theirs["image_grid_thw"][0].tolist()
    np.testing.assert_allclose(pixels, theirs["pixel_values"], atol=1e-6)


def test_merge_neighbours_lie_together() -> None:
    """Paint every patch with its own number: four consecutive rows must be the four patches of one 2 x 2 group."""
    numbers = np.arange(16, dtype=np.uint8).reshape(4, 4)
    cfg = ImageConfig(image_size=56, image_mean=(0, 0, 0), image_std=(1, 1, 1))
    pixels, grid = preprocess(np.kron(numbers, np.ones((14, 14), np.uint8)), cfg)
    assert grid.tolist() == [1, 4, 4]
    assert pixels.shape == (16, 1176)
    order = np.rint(pixels[:, 0] * 255).astype(int).tolist()
    assert order == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert (pixels.std(axis=1) < 1e-6).all()
    assert n_image_tokens(grid, cfg) == 4


def test_a_patch_is_ordered_channel_time_row_column() -> None:
    cfg = ImageConfig(image_size=28, image_mean=(0, 0, 0), image_std=(1, 1, 1))
    image = noise(28, 28, 3)
    pixels, _ = preprocess(image, cfg)
    first = pixels[0].reshape(3, 2, 14, 14) * 255
    np.testing.assert_allclose(first[:, 0], image[:14, :14].transpose(2, 0, 1), atol=1e-3)
    np.testing.assert_array_equal(first[:, 0], first[:, 1])


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((1024, 1024), (1036, 1036)), ((2500, 2048), (1652, 1344)), ((28, 28), (56, 56)), ((300, 20), (308, 28))],
)
def test_sizes_are_multiples_within_bounds(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    got = smart_resize(*size, factor=28, min_pixels=3136, max_pixels=2_250_000)
    assert got[0] % 28 == 0
    assert got[1] % 28 == 0
    assert 3136 <= got[0] * got[1] <= 2_250_000
    assert got == wanted


def test_letterbox_centres_the_film_on_black() -> None:
    cfg = ImageConfig(image_size=56, image_mean=(0, 0, 0), image_std=(1, 1, 1))
    pixels, grid = preprocess(np.full((100, 50), 255, np.uint8), cfg)
    assert grid.tolist() == [1, 4, 4]
    # Token order: upper left, upper right, ... ; the middle half of the columns is white.
    columns = pixels.reshape(2, 2, 2, 2, 3, 2, 14, 14)[..., 0, 0, :, :].transpose(0, 2, 4, 1, 3, 5).reshape(56, 56)
    assert columns[:, :13].max() == 0.0
    assert columns[:, 15:41].min() == 1.0
    assert columns[:, 43:].max() == 0.0


def test_every_accepted_type_of_the_same_picture_gives_the_same_patches() -> None:
    grey = noise(168, 168)
    grey[0, 0], grey[0, 1] = 0, 255
    wanted, _ = preprocess(grey, SQUARE)
    same: list[Any] = [
        grey[:, :, None],
        np.stack([grey] * 3, axis=-1),
        grey.astype(np.float32) / 255,
        grey.astype(np.float64) * 3 - 100,
        grey.astype(np.uint16) * 257,
        grey.astype(np.int16) - 1000,
        Image.fromarray(grey),
        Image.fromarray(grey).convert("RGB"),
        Image.fromarray(grey.astype(np.uint16) * 257),
    ]
    for picture in same:
        np.testing.assert_allclose(preprocess(picture, SQUARE)[0], wanted, atol=1e-6)


def test_floats_within_0_and_1_are_not_stretched() -> None:
    dim, _ = preprocess(np.full((168, 168), 0.25, np.float32), SQUARE)
    bright, _ = preprocess(np.full((168, 168), 0.75, np.float32), SQUARE)
    assert dim.max() < bright.min()


@pytest.mark.parametrize(
    ("picture", "code"),
    [
        (np.zeros((0, 5), np.uint8), "empty"),
        (np.zeros(5, np.uint8), "wrong_rank"),
        (np.zeros((3, 20, 20), np.uint8), "wrong_rank"),
        (np.zeros((2, 20, 20, 3), np.uint8), "wrong_rank"),
        (np.full((20, 20), np.nan), "not_finite"),
        (np.full((20, 20), np.inf, np.float32), "not_finite"),
        (np.zeros((20, 20), np.complex64), "wrong_type"),
        (np.array([["a", "b"]]), "wrong_type"),
        ("film.png", "wrong_type"),
        (None, "wrong_type"),
        (np.broadcast_to(np.uint8(0), (20_000, 20_000)), "too_large"),
    ],
)
def test_unusable_pictures_are_refused_with_a_code(picture: Any, code: str) -> None:
    with pytest.raises(ImageError) as caught:
        preprocess(picture, SQUARE)
    assert caught.value.code == code


def test_too_long_a_picture_is_refused() -> None:
    with pytest.raises(ImageError) as caught:
        preprocess(np.zeros((1, 300), np.uint8), QWEN)
    assert caught.value.code == "aspect_ratio"


def test_reading_files(tmp_path: Path) -> None:
    grey = noise(40, 30)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey).save(tmp_path / "a.jpg", quality=95)
    np.save(tmp_path / "a.npy", grey)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), grey)
    np.testing.assert_array_equal(read_image(tmp_path / "a.npy"), grey)
    assert np.asarray(read_image(tmp_path / "a.jpg")).shape == (40, 30)


def bomb(edge: int) -> bytes:
    """A PNG that claims edge x edge pixels and brings none of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", edge, edge, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(noise(200, 200)).save(whole, "PNG")
    contents = {
        "text.png": b"not a picture",
        "short.png": whole.getvalue()[:1000],
        "empty.png": b"",
        "wrong.npy": b"\x93NUMPY nothing",
        "void.npy": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError) as caught:
            read_image(tmp_path / name)
        assert caught.value.code == "not_an_image", name
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "absent.png")
    for edge in (9_000, 20_000):
        (tmp_path / "bomb.png").write_bytes(bomb(edge))
        with pytest.raises(ImageError) as caught:
            read_image(tmp_path / "bomb.png")
        assert caught.value.code == "too_large"
    objects = np.array([{"a": 1}], dtype=object)
    np.save(tmp_path / "pickle.npy", objects, allow_pickle=True)
    with pytest.raises(ImageError):
        read_image(tmp_path / "pickle.npy")


def test_configuration_survives_its_file(tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    for cfg in (SQUARE, QWEN, ImageConfig(image_mean=(0.1, 0.2, 0.3), max_image_pixels=5)):
        file.write_text(json.dumps(cfg.to_json()))
        assert ImageConfig.from_folder(tmp_path) == cfg
    file.write_text(json.dumps({"min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14}))
    assert ImageConfig.from_folder(tmp_path).max_pixels == 12_845_056


@pytest.mark.parametrize("content", ["{", "[]", '{"image_mean": [1, 2]}', '{"patch_size": "x"}', '{"image_size": 100}'])
def test_malformed_configuration_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(content)
    with pytest.raises(CheckpointError):
        ImageConfig.from_folder(tmp_path)
    with pytest.raises(CheckpointError, match="missing"):
        ImageConfig.from_folder(tmp_path / "absent")


@pytest.mark.parametrize("cfg", [QWEN, SQUARE])
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.npy"])
def test_a_header_says_which_grid_the_picture_will_have(tmp_path: Path, cfg: ImageConfig, name: str) -> None:
    pixels = noise(210, 333)
    path = tmp_path / name
    if name.endswith("npy"):
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    assert read_size(path) == (210, 333)
    assert list(image_grid(*read_size(path), cfg)) == preprocess(read_image(path), cfg)[1].tolist()


@pytest.mark.parametrize("name", ["x.png", "x.npy", "there.png", "there.npy"])
def test_a_header_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    for there in ("there.png", "there.npy"):
        (tmp_path / there).write_bytes(b"neither")
    with pytest.raises(ImageError):
        read_size(tmp_path / name)
    Image.fromarray(noise(40, 40)).save(tmp_path / "large.png")
    with pytest.raises(ImageError, match="more than the limit"):
        read_size(tmp_path / "large.png", 1_000)
