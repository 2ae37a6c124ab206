"""What the projection needs from its database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from console.domain.facts import DeadLetter, Fact, Image, WireRefusal
from console.domain.state import StudySummary


class Projection(Protocol):
    """The read model, inside one open transaction."""

    def lock_study(self, study_instance_uid: str) -> None:
        """Let no other transaction project the same study until this one ends."""
        ...

    def add_fact(self, fact: Fact) -> None:
        """Keep the fact; one that is known already changes nothing."""
        ...

    def facts_of(self, study_instance_uid: str) -> Sequence[Fact]:
        """All facts of a study, in any order."""
        ...

    def add_images(self, images: Sequence[Image]) -> None:
        """Keep the objects; of one object listed twice the newer version's word counts."""
        ...

    def add_dead_letter(self, letter: DeadLetter) -> None:
        """Keep the dead letter; one that is known already changes nothing."""
        ...

    def add_refusal(self, refusal: WireRefusal) -> None:
        """Keep the refusal; one that is known already changes nothing."""
        ...

    def save(self, summary: StudySummary, now: datetime) -> None:
        """Write the study's line in the list."""
        ...
