"""`echo-model domain`: which pictures a model takes for images of another kind than those it was trained on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echo_model.errors import EchoModelError

if TYPE_CHECKING:
    from echo_model.images import Picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".npy")


def add_domain(parser: argparse.ArgumentParser) -> None:
    """Arguments of `echo-model domain`."""
    parser.add_argument("--model", default="demo", metavar="PATH", help='checkpoint folder or "demo" (default)')
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="PNG, JPEG or .npy, or a folder of them")
    parser.add_argument("--phantoms", type=int, default=0, metavar="N", help="also N phantoms, which belong inside")
    parser.add_argument("--seed", type=int, default=None, help="their series (default: the held-out one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores there too")
    parser.set_defaults(run=_domain)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _files(paths: list[Path]) -> list[Path]:
    """The pictures named, and those straight inside the folders named."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise EchoModelError(f"{path}: no {', '.join(SUFFIXES)} in this folder")
        found += inside
    return found


def _domain(args: argparse.Namespace) -> int:
    from echo_model import demo_checkpoint_path
    from echo_model.data.phantoms import generate_phantom
    from echo_model.domain_score import FILE_NAME, DomainModel, image_features
    from echo_model.evaluation.phantoms import HELD_OUT_SEED
    from echo_model.images import read_image
    from echo_model.model import load_model

    seed = HELD_OUT_SEED if args.seed is None else args.seed
    if args.phantoms < 0 or seed < 0:
        raise EchoModelError("--phantoms and --seed must not be negative")
    files = _files(args.images)
    if not files and not args.phantoms:
        raise EchoModelError("name an image or a folder, or ask for --phantoms")
    if args.json is not None and not args.json.absolute().parent.is_dir():
        raise EchoModelError(f"{args.json}: its folder does not exist")
    loaded = load_model(demo_checkpoint_path() if args.model == "demo" else Path(args.model))
    if not (loaded.path / FILE_NAME).is_file():
        raise EchoModelError(f"{loaded.path} has no {FILE_NAME}: it cannot tell one kind of image from another")
    domain = DomainModel.load(loaded.path / FILE_NAME)

    def parts_of(picture: Picture) -> dict[str, float]:
        return domain.parts(image_features(loaded, picture))

    rows: list[dict[str, Any]] = []
    for file in files:
        parts = parts_of(read_image(file))
        score = max(parts.values())
        rows.append({"image": str(file), "score": score, **parts})
        told = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
        _say(f"{score:6.2f}  {told}  {'out of domain' if score > 1.0 else 'in domain'}  {file}")
    drawn = [max(parts_of(generate_phantom(seed, index).image).values()) for index in range(args.phantoms)]
    result: dict[str, Any] = {"images": rows}
    for name, values in (("images", [row["score"] for row in rows]), ("phantoms", drawn)):
        if values:
            flagged = sum(value > 1.0 for value in values)
            share = flagged / len(values)
            spread = f"scores {min(values):.2f} to {max(values):.2f}"
            _say(f"{name}: {flagged} of {len(values)} out of domain ({share:.1%}), {spread}")
            result[f"{name}_out_of_domain"] = share
    if drawn:
        result |= {"phantom_seed": seed, "phantoms": drawn}
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0
