"""Text cut into words, numbers and marks, each with its place."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_CJK: Final = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNIT: Final = re.compile(
    rf"[{_CJK}]|[^\W\d_{_CJK}]+(?:[-'][^\W\d_{_CJK}]+)*|\d+(?:[.,]\d+)*|[^\w\s]|_",
)
NUMBER: Final = "#"
_JOINING: Final = "-'.,"  # "left-" may become "left-sided", "3." may become "3.5"


class Unit(NamedTuple):
    """A word, a number, a mark or one Chinese character. `glued`: nothing stands between it and the unit before."""

    text: str
    start: int
    end: int
    glued: bool

    @property
    def is_word(self) -> bool:
        """Letters, not a number or a mark."""
        return self.text[0].isalpha()

    @property
    def symbol(self) -> str:
        """What is counted: the text, all numbers alike, with a space ahead where one was written."""
        bare = NUMBER if self.text[0].isdigit() else self.text
        return bare if self.glued else f" {bare}"


def cut(text: str, begin: int = 0, *, finished: bool = True) -> list[Unit]:
    """The units of a text from `begin` on. When it is not finished, a last word that may still grow is left out."""
    units: list[Unit] = []
    before = begin or -1
    for match in _UNIT.finditer(text, begin):
        start, end = match.span()
        units.append(Unit(match.group(), start, end, glued=start == before))
        before = end
    if not finished:
        whole = len(text)
        if units and units[-1].end == whole and units[-1].text in _JOINING:
            whole = units.pop().start
        if units and units[-1].end == whole and units[-1].text[0].isalnum():
            units.pop()
    return units
