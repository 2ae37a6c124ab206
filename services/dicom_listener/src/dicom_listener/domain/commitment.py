"""Storage commitment (PS3.4 annex J): what may be promised, from what is durable now."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

NO_SUCH_INSTANCE, CLASS_CONFLICT = 0x0112, 0x0119


@dataclass(frozen=True)
class Reference:
    """One object that a sender asks about."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Verdict:
    """Objects that are safe, and those that are not, with the failure reason (0008,1197)."""

    committed: tuple[Reference, ...]
    failed: tuple[tuple[Reference, int], ...]


def judge(requested: Sequence[Reference], durable: Mapping[str, Collection[str]]) -> Verdict:
    """`durable`: SOP Instance UID to SOP Class UIDs of the objects that stand in the store and in the index."""
    committed, failed = [], []
    for reference in dict.fromkeys(requested):
        classes = durable.get(reference.sop_instance_uid)
        if not classes:
            failed.append((reference, NO_SUCH_INSTANCE))
        elif reference.sop_class_uid not in classes:
            failed.append((reference, CLASS_CONFLICT))
        else:
            committed.append(reference)
    return Verdict(tuple(committed), tuple(failed))
