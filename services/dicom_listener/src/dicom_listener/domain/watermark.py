"""Free-space watermark with hysteresis: a nearly full disk does not flip between yes and no at every object."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Watermark:
    """Refuse below `min_free_bytes`; after that accept again only from `resume_free_bytes` on.

    `refusing`: one item, which is not zero while objects are refused; memory that processes share where several look.
    """

    min_free_bytes: int
    resume_free_bytes: int
    refusing: bytearray | memoryview = field(default_factory=lambda: bytearray(1))

    def allows(self, free_bytes: int | None) -> bool:
        """Whether an object may be taken now; `None` means that the store has no such figure."""
        if free_bytes is None:
            return True
        limit = self.resume_free_bytes if self.refusing[0] else self.min_free_bytes
        self.refusing[0] = free_bytes < limit
        return free_bytes >= limit
