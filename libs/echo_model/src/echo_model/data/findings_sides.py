"""Which side of the patient a mention of a finding is on, from the words around it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from echo_model.data import findings_lexicon as lexicon
from echo_model.data.labels import SIDED, Side

#: "right pneumothorax and effusion", "effusion and atelectasis on the left": a list shares its side.
_JOINED = re.compile(
    r"\s*(?:,?\s*(?:and|or|with|versus|vs\.?|rather than)?\s*(?:an?|the)?\s*"
    r"(?:(?:small |mild |some |minimal )?(?:adjacent|associated|underlying|overlying|accompanying))?)\s*"
)


@dataclass(frozen=True, slots=True)
class Hit:
    """A mention inside a clause: characters ``start`` to ``end``."""

    finding: str
    start: int
    end: int


def side_of(low: str, hit: Hit, hits: list[Hit]) -> Side:
    """Side stated for a mention: in it, ahead of it up to the mention before, else behind it up to the next one.

    ``low`` is the clause in lower case, ``hits`` all mentions in it by their start.
    """
    if hit.finding not in SIDED:
        return "none"
    earlier = [other for other in hits if other.end <= hit.start]
    later = [other for other in hits if other.start >= hit.end]
    start = max((other.end for other in earlier), default=0)
    end = min((other.start for other in later), default=len(low))
    inside = sides_in(low[hit.start : hit.end])
    if inside != "none":
        return inside
    between = low[start : hit.start]
    if earlier:  # up to the comma it is the earlier mention's
        between = between.rsplit(",", 1)[-1]
    ahead = sides_in(_own_part(between))
    behind_text = low[hit.end : end]
    if ahead != "none":
        return ahead
    if lexicon.COMPARED.match(behind_text.lstrip(" ,(")):
        return "both"
    behind = sides_in(re.split(r",| and (?:an?)\b", behind_text)[0] if later else behind_text)
    if behind != "none":
        return behind
    if start and _JOINED.fullmatch(low[start : hit.start]):
        return sides_in(_own_part(low[: max(other.end for other in earlier)]))
    if later and _JOINED.fullmatch(behind_text):
        return sides_in(low[end:])
    return "none"


def sides_in(part: str) -> Side:
    """The side that a piece of text in lower case names; places like "right atrium" count for nothing."""
    part = lexicon.NOT_A_SIDE.sub(" ", part)
    strong = _plain(lexicon.WEAK_SIDE.sub(" ", part))
    return strong if strong != "none" else _plain(part)


def _plain(part: str) -> Side:
    left, right = bool(lexicon.LEFT.search(part)), bool(lexicon.RIGHT.search(part))
    if (left and right) or lexicon.BOTH.search(part):
        return "both"
    return "left" if left else "right" if right else "none"


def _own_part(ahead: str) -> str:
    """The words ahead of a mention that belong to it: from a comma with a subject of its own, when a side follows."""
    last = re.split(r",\s*(?=(?:and )?(?:the|there|an?)\b)", ahead)[-1]
    return last if sides_in(last) != "none" else ahead
