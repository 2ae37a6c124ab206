"""The one format of corpora: `index.jsonl`, a line an image, and `corpus.json`. Described in docs/corpora.md."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from echo_model.errors import EchoModelError

INDEX: Final = "index.jsonl"
ABOUT: Final = "corpus.json"
FORMAT: Final = "echo-corpus/1"

View = Literal["frontal", "lateral", "unknown"]
Split = Literal["train", "validate", "test"]
SPLITS: Final[tuple[str, ...]] = get_args(Split)
VIEWS: Final[tuple[str, ...]] = get_args(View)
#: Sections an entry may have; all but the first two are kept for reading, never for training.
SECTIONS: Final = ("findings", "impression", "indication", "history", "comparison", "technique")


class CorpusError(EchoModelError):
    """A corpus cannot be used. The text names the file, and the line if one is to blame."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with a corpus: where (file and line), a short code, and words. Names no patient."""

    where: str
    code: str
    message: str
    is_error: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {'error' if self.is_error else 'warning'} {self.code}: {self.message}"


@dataclass(frozen=True)
class Entry:
    """One image with the report of its study.

    ``image``: relative to the corpus' ``root``; ``patient``, ``study``: keyed hashes; ``normalised``: the report in the
    fixed order (sections findings and impression), None when nobody has made it; ``where``: file and line it came from.
    """

    id: str
    image: str
    view: View
    sections: dict[str, str]
    patient: str
    study: str
    split: Split
    source: str
    normalised: dict[str, str] | None = None
    where: str = field(default="", compare=False)

    @property
    def report(self) -> str:
        """The text to train on and to compare with: normalised if there, else as written, under its headings."""
        texts = self.sections if self.normalised is None else self.normalised
        parts = [("Findings", texts.get("findings", "")), ("Impression", texts.get("impression", ""))]
        return " ".join(f"{name}: {text}" for name, text in parts if text)


def hashed(key: bytes, kind: str, value: str) -> str:
    """Keyed hash of an identifier, 16 hexadecimal digits. Without the key it cannot be tried out."""
    return hmac.new(key, f"{kind}\0{value}".encode(), hashlib.sha256).hexdigest()[:16]


def write_index(folder: Path, entries: Iterable[Entry], *, root: Path, source: str, about: dict[str, Any]) -> None:
    """Write both files; the folder is made. Images stay where they are, under ``root``."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with (folder / INDEX).open("w", encoding="utf-8") as file:
        for entry in entries:
            row = {key: value for key, value in asdict(entry).items() if key != "where" and value is not None}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    told = {"format": FORMAT, "source": source, "root": str(root.resolve()), "entries": count, **about}
    (folder / ABOUT).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_about(folder: Path) -> dict[str, Any]:
    """`corpus.json`. Raises CorpusError when it is missing, broken or of another format."""
    path = folder / ABOUT
    try:
        about = json.loads(path.read_bytes())
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise CorpusError(f"{path}: not JSON") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("root"), str):
        raise CorpusError(f'{path}: "format" must be "{FORMAT}" and "root" the folder of the images')
    return about


def image_root(folder: Path) -> Path:
    """The folder that image paths are relative to; a relative one is meant from the corpus' folder."""
    return folder / str(read_about(folder)["root"])


def read_index(folder: Path) -> tuple[list[Entry], list[Problem]]:
    """All well-formed entries and what is wrong with other lines. Raises CorpusError for a missing or empty index."""
    path = folder / INDEX
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror or error}") from None
    entries: list[Entry] = []
    problems: list[Problem] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{INDEX}, line {number}"
        try:
            entries.append(_entry(line, where))
        except CorpusError as error:
            problems.append(Problem(where, "bad_line", str(error)))
    if not entries and not problems:
        raise CorpusError(f"{path}: no entry")
    return entries, problems


def by_study(entries: Iterable[Entry], most: int) -> list[list[Entry]]:
    """The images of each study together, frontal ones first, `most` of them at most; studies in the order they come."""
    grouped: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        grouped.setdefault((entry.split, entry.study), []).append(entry)
    return [sorted(views, key=lambda entry: VIEWS.index(entry.view))[:most] for views in grouped.values()]


def _entry(line: bytes, where: str) -> Entry:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise CorpusError("not JSON") from None
    if not isinstance(row, dict):
        raise CorpusError("a JSON object is wanted")
    for key in ("id", "image", "patient", "study", "source"):
        if not isinstance(row.get(key), str) or not row[key]:
            raise CorpusError(f'"{key}" is missing or no text')
    if row.get("view") not in VIEWS:
        raise CorpusError(f'"view" must be one of {", ".join(VIEWS)}')
    if row.get("split") not in SPLITS:
        raise CorpusError(f'"split" must be one of {", ".join(SPLITS)}')
    if Path(row["image"]).is_absolute() or ".." in Path(row["image"]).parts:
        raise CorpusError('"image" must be a path below the root')
    for key in ("sections", "normalised"):
        if key == "normalised" and row.get(key) is None:
            continue
        texts = row.get(key)
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise CorpusError(f'"{key}" must hold texts')
        if odd := sorted(texts.keys() - set(SECTIONS)):
            raise CorpusError(f'"{key}": {odd[0]!r} is not known')
    known = ("id", "image", "view", "sections", "patient", "study", "split", "source", "normalised")
    if odd := sorted(row.keys() - set(known)):
        raise CorpusError(f"{odd[0]!r} is not known")
    return Entry(**row, where=where)
