"""Free-space watermark with hysteresis: a nearly full disk does not flip between yes and no at every object."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Watermark:
    """Refuse below `min_free_bytes`; after that accept again only from `resume_free_bytes` on."""

    min_free_bytes: int
    resume_free_bytes: int
    refusing: bool = False

    def allows(self, free_bytes: int | None) -> bool:
        """Whether an object may be taken now; `None` means that the store has no such figure."""
        if free_bytes is None:
            return True
        limit = self.resume_free_bytes if self.refusing else self.min_free_bytes
        self.refusing = free_bytes < limit
        return not self.refusing
