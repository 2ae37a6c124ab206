"""How many associations may be open at the same time: in all, and from one network address."""

from __future__ import annotations

import threading

from dicom_listener.domain.access import TurnedAway
from dicom_listener.ports import Association


class AssociationLimits:
    """Thread-safe."""

    def __init__(self, most: int, most_of_peer: int) -> None:
        self._most = most
        self._most_of_peer = most_of_peer
        self._lock = threading.Lock()
        self._admitted: dict[Association, str] = {}  # network address

    def admit(self, association: Association, address: str) -> TurnedAway | None:
        """Count it from now on; or why there is no room for it."""
        with self._lock:
            for dead in [each for each in self._admitted if not each.is_alive()]:
                del self._admitted[dead]
            if len(self._admitted) >= self._most:
                return TurnedAway.TOO_MANY
            if list(self._admitted.values()).count(address) >= self._most_of_peer:
                return TurnedAway.TOO_MANY_OF_PEER
            self._admitted[association] = address
            return None

    def leave(self, association: Association) -> None:
        """It has ended."""
        with self._lock:
            self._admitted.pop(association, None)
