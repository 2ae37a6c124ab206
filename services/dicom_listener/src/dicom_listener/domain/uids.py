"""What counts as a UID (PS3.5 section 9.1 and 6.2, VR UI)."""

from __future__ import annotations

import re

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*", re.ASCII)


def is_uid(text: str) -> bool:
    """Whether the text is a UID: dotted decimal components without leading zeros, at most 64 characters."""
    return 0 < len(text) <= 64 and _UID.fullmatch(text) is not None
