"""The words of the training reports and which of them followed each other, in a small file beside the weights."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from echo_model.errors import CheckpointError
from echo_model.guards.flags import UNKNOWN_WORD, WORD_ORDER
from echo_model.guards.units import Unit, cut

LEXICON_FILE: Final = "lexicon.json"
_FORMAT: Final = "echo-lexicon 1"
_HELD_OUT: Final = 5  # one text in five tells how often a good text has something new
_ALLOWED: Final = 0.005  # share of good texts that may be flagged by each of the two rules
_ORDER_RUNS: Final = (1, 2, 3)


@dataclass(frozen=True)
class Lexicon:
    """What the training reports are made of.

    `symbols`: words, numbers and marks as written, with the space ahead (see `Unit.symbol`). `pairs`: numbers of two
    symbols that were neighbours. A place where `order_run` pairs in a row were never seen is a word order that does not
    exist (two tokens that changed places make three such pairs); 0 switches the rule off. An unknown word counts at
    once, or with `spelling` only when three of its letters in a row occur in no known word.

    Small and uniform sets of reports can be judged strictly, large ones cannot: `fit` finds both settings itself.
    """

    symbols: tuple[str, ...]
    pairs: frozenset[tuple[int, int]]
    order_run: int = 1
    spelling: bool = False
    _numbers: dict[str, int] = field(init=False, repr=False, compare=False)
    _words: frozenset[str] = field(init=False, repr=False, compare=False)
    _letters: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        words = frozenset(symbol.strip().lower() for symbol in self.symbols)
        object.__setattr__(self, "_numbers", {symbol: number for number, symbol in enumerate(self.symbols)})
        object.__setattr__(self, "_words", words)
        letters = frozenset(itertools.chain.from_iterable(map(_trigrams, words))) if self.spelling else frozenset()
        object.__setattr__(self, "_letters", letters)

    @classmethod
    def fit(cls, texts: Iterable[str]) -> Lexicon:
        """Learn from training reports (those that the model learns to write, section headings included).

        The strictest rules are taken that would flag at most one good text in two hundred, found with a fifth of the
        texts held back; the lexicon itself is then made of all. Raises ValueError without any text.
        """
        reports = list(texts)
        if not reports:
            raise ValueError("a lexicon needs at least one report")
        held = reports[::_HELD_OUT]
        rest = [text for at, text in enumerate(reports) if at % _HELD_OUT]
        symbols, pairs = _count(reports)
        trial_symbols, trial_pairs = _count(rest or reports)
        order_run = 0
        for run in _ORDER_RUNS:
            if cls(trial_symbols, trial_pairs, run)._share(held, WORD_ORDER) <= _ALLOWED:
                order_run = run
                break
        spelling = cls(trial_symbols, trial_pairs)._share(held, UNKNOWN_WORD) > _ALLOWED
        return cls(symbols, pairs, order_run, spelling)

    def knows(self, word: str) -> bool:
        """Whether a word occurred in the reports, in whatever case."""
        return word.lower() in self._words

    def judge(self, units: Sequence[Unit]) -> list[tuple[str, int, int]]:
        """Unknown words and unseen orders among the units of a text: (flag, start, end)."""
        found = [(UNKNOWN_WORD, unit.start, unit.end) for unit in units if self._odd(unit)]
        if not self.order_run:
            return found
        numbers = [self._number(unit) for unit in units]
        first = -1
        for at in range(1, len(units) + 1):
            if at < len(units) and self._unseen(units, numbers, at):
                first = at - 1 if first < 0 else first
                continue
            if first >= 0 and at - 1 - first >= self.order_run:
                found.append((WORD_ORDER, units[first].start, units[at - 1].end))
            first = -1
        return found

    def save(self, path: Path) -> None:
        """Write the file: symbols, and for each of them the numbers of those that followed it."""
        after: list[list[int]] = [[] for _ in self.symbols]
        for one, other in sorted(self.pairs):
            after[one].append(other)
        content = {
            "format": _FORMAT,
            "order_run": self.order_run,
            "spelling": self.spelling,
            "symbols": list(self.symbols),
            "after": after,
        }
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Lexicon:
        """Read what `save` wrote. Raises CheckpointError naming the file."""
        try:
            content: Any = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:  # broken JSON and broken UTF-8 are ValueErrors
            raise CheckpointError(f"{path.name} is damaged: {error}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise CheckpointError(f"{path.name} is no lexicon of the format {_FORMAT!r}")
        run, spelling = content.get("order_run"), content.get("spelling")
        if type(run) is not int or run not in (0, *_ORDER_RUNS) or not isinstance(spelling, bool):
            raise CheckpointError(f"{path.name}: order_run or spelling is missing or out of range")
        symbols, after = content.get("symbols"), content.get("after")
        if not isinstance(symbols, list) or not all(isinstance(symbol, str) and symbol.strip() for symbol in symbols):
            raise CheckpointError(f"{path.name}: symbols must be a list of words and marks")
        if not isinstance(after, list) or len(after) != len(symbols) or len(set(symbols)) != len(symbols):
            raise CheckpointError(f"{path.name}: symbols are not unique or after is not as long as they are")
        pairs = set()
        for number, followers in enumerate(after):
            if not isinstance(followers, list):
                raise CheckpointError(f"{path.name}: after must hold lists of numbers")
            for follower in followers:
                if type(follower) is not int or not 0 <= follower < len(symbols):
                    raise CheckpointError(f"{path.name}: {follower!r} in after is no number of a symbol")
                pairs.add((number, follower))
        return cls(tuple(symbols), frozenset(pairs), run, spelling)

    def _number(self, unit: Unit) -> int:
        """Number of a unit's symbol, -1 for one never seen."""
        return self._numbers.get(unit.symbol, -1)

    def _odd(self, unit: Unit) -> bool:
        """Whether a unit is a word that does not belong into these reports."""
        if not unit.is_word or self.knows(unit.text):
            return False
        return not self.spelling or not self._letters.issuperset(_trigrams(unit.text.lower()))

    def _unseen(self, units: Sequence[Unit], numbers: Sequence[int], at: int) -> bool:
        """Whether the unit never followed the one before it. An unknown word is judged as such, not here."""
        for unit, number in ((units[at - 1], numbers[at - 1]), (units[at], numbers[at])):
            if number < 0 and unit.is_word and not self.knows(unit.text):
                return False
        if units[at - 1].text == units[at].text:
            return False  # doubled, which has a flag of its own
        return (numbers[at - 1], numbers[at]) not in self.pairs

    def _share(self, texts: Sequence[str], kind: str) -> float:
        """Share of texts with that flag."""
        return sum(any(flag == kind for flag, _, _ in self.judge(cut(text))) for text in texts) / len(texts)


def load_lexicon(folder: Path) -> Lexicon | None:
    """The lexicon of a checkpoint folder, None when it has none. Raises CheckpointError for a broken one."""
    path = folder / LEXICON_FILE
    return Lexicon.load(path) if path.is_file() else None


def _count(texts: Iterable[str]) -> tuple[tuple[str, ...], frozenset[tuple[int, int]]]:
    """Symbols, the frequent ones first so that their numbers are short, and the pairs of neighbours."""
    counts: Counter[str] = Counter()
    neighbours: set[tuple[str, str]] = set()
    for text in texts:
        written = [unit.symbol for unit in cut(text)]
        counts.update(written)
        neighbours.update(itertools.pairwise(written))
    symbols = tuple(sorted(counts, key=lambda symbol: (-counts[symbol], symbol)))
    numbers = {symbol: number for number, symbol in enumerate(symbols)}
    return symbols, frozenset((numbers[one], numbers[other]) for one, other in neighbours)


def _trigrams(word: str) -> list[str]:
    """Three letters in a row, with the word's ends marked."""
    marked = f"^{word}$"
    return [marked[at : at + 3] for at in range(len(marked) - 2)]
