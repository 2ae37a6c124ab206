"""Who may open an association: limits and allow-lists, and why somebody is turned away (PS3.8 table 9-21)."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class TurnedAway(Enum):
    """A reason code, what the A-ASSOCIATE-RJ says (result, source, reason; None: no such PDU), and a sentence."""

    DRAINING = ("draining", (2, 3, 1), "the listener is stopping")
    TOO_MANY = ("too_many_associations", (2, 3, 2), "too many associations at the same time")
    TOO_MANY_OF_PEER = ("too_many_associations_of_peer", (2, 3, 2), "too many associations of this address")
    CALLED_AE_TITLE = ("called_ae_title_unknown", (1, 1, 7), "no such AE title is served here")
    CALLING_AE_TITLE = ("calling_ae_title_not_allowed", (1, 1, 3), "this calling AE title is not on the allow-list")
    NETWORK = ("network_not_allowed", (1, 1, 1), "this address is not on the allow-list of the AE title")
    PROTOCOL_VERSION = ("protocol_version", (1, 2, 2), "the upper layer protocol version is not supported")
    APPLICATION_CONTEXT = ("application_context", (1, 1, 2), "the application context is not DICOM's")
    MAXIMUM_LENGTH = ("maximum_length_too_small", (1, 1, 1), "the sender takes PDUs too short for any answer")
    REJECTED = ("rejected", (1, 1, 1), "the association was rejected")
    TOO_MANY_CONNECTIONS = ("too_many_connections", None, "too many connections without an association")
    TLS_FAILED = ("tls_handshake_failed", None, "the TLS handshake failed")
    NO_REQUEST = ("no_association_request", None, "no association was requested in time")
    IDLE = ("idle_timeout", None, "the sender was silent for too long")
    STALLED = ("stalled_pdu", None, "the rest of a PDU did not come in time")
    PDU_TOO_LONG = ("pdu_too_long", None, "a PDU was longer than what was negotiated")
    PDU_INVALID = ("pdu_invalid", None, "a PDU could not be read or came out of turn")
    MESSAGE_INVALID = ("message_invalid", None, "a DIMSE message could not be read")
    MESSAGE_TOO_LONG = ("message_too_long", None, "a DIMSE command or request was too long")

    def __init__(self, code: str, rejection: tuple[int, int, int] | None, text: str) -> None:
        self.code = code
        self.rejection = rejection
        self.text = text


@dataclass(frozen=True)
class AccessRule:
    """Called and calling AE title (`*` is any) and networks (none is any) that go together."""

    called: str = "*"
    calling: str = "*"
    networks: tuple[Network, ...] = ()

    def has(self, address: str) -> bool:
        """Whether the address lies in one of the networks. An IPv4 address may come dressed as IPv6."""
        if not self.networks:
            return True
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return any(ip.version == network.version and ip in network for network in self.networks)


def check_access(rules: Sequence[AccessRule], called: str, calling: str, address: str) -> TurnedAway | None:
    """Why the peer may not in; None if a rule lets it in, or there are none. The first thing wrong is named."""
    if not rules:
        return None
    of_called = [rule for rule in rules if rule.called in ("*", called)]
    if not of_called:
        return TurnedAway.CALLED_AE_TITLE
    of_calling = [rule for rule in of_called if rule.calling in ("*", calling)]
    if not of_calling:
        return TurnedAway.CALLING_AE_TITLE
    return None if any(rule.has(address) for rule in of_calling) else TurnedAway.NETWORK
