"""Allow-lists per called AE title, and the book of refusals."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import datetime

import pytest

from dicom_listener.adapters.scp import ScpOptions
from dicom_listener.domain.access import AccessRule, TurnedAway, check_access
from dicom_listener.handlers.refusals import RefusalBook
from dicom_listener.ports import CountedRefusal, Peer, Refusal
from pipeline.clock import ManualClock
from pipeline.errors import TransientError

RULES = (
    AccessRule("ECHO", "PACS", (ipaddress.ip_network("10.1.0.0/16"),)),
    AccessRule("ECHO", "MOBILE1", (ipaddress.ip_network("10.2.0.7"), ipaddress.ip_network("fd00::/8"))),
    AccessRule("RESEARCH", "*", (ipaddress.ip_network("192.0.2.0/24"),)),
)


@pytest.mark.parametrize(
    ("called", "calling", "address", "expected"),
    [
        ("ECHO", "PACS", "10.1.2.3", None),
        ("ECHO", "PACS", "::ffff:10.1.2.3", None),
        ("ECHO", "PACS", "10.2.0.7", TurnedAway.NETWORK),
        ("ECHO", "MOBILE1", "10.2.0.7", None),
        ("ECHO", "MOBILE1", "fd00::1%eth0", None),
        ("ECHO", "MOBILE1", "fe80::1", TurnedAway.NETWORK),
        ("ECHO", "MOBILE1", "not an address", TurnedAway.NETWORK),
        ("ECHO", "OTHER", "10.1.2.3", TurnedAway.CALLING_AE_TITLE),
        ("ECHO", "pacs", "10.1.2.3", TurnedAway.CALLING_AE_TITLE),
        ("RESEARCH", "ANY", "192.0.2.9", None),
        ("RESEARCH", "PACS", "10.1.2.3", TurnedAway.NETWORK),
        ("NOBODY", "PACS", "10.1.2.3", TurnedAway.CALLED_AE_TITLE),
    ],
)
def test_allow_list(called: str, calling: str, address: str, expected: TurnedAway | None) -> None:
    assert check_access(RULES, called, calling, address) is expected


def options(*access: AccessRule, require_called_aet: bool) -> ScpOptions:
    return ScpOptions("127.0.0.1", 0, "ECHO ", require_called_aet, 1, 16_384, 2**20, 1.0, 1.0, access)


@pytest.mark.parametrize(
    ("called", "calling", "expected"),
    [
        ("ECHO", "PACS", None),
        ("OTHER", "PACS", TurnedAway.CALLED_AE_TITLE),
        ("RESEARCH", "PACS", TurnedAway.CALLING_AE_TITLE),
        ("RESEARCH", "LAB", None),  # named by an entry
        ("ECHO", "LAB", TurnedAway.CALLING_AE_TITLE),
    ],
)
def test_only_called_ae_titles_that_are_named(called: str, calling: str, expected: TurnedAway | None) -> None:
    named = options(AccessRule(calling="PACS"), AccessRule("RESEARCH", "LAB"), require_called_aet=True)
    assert check_access(named.rules(), called, calling, "10.1.2.3") is expected


def test_our_own_ae_title_is_required_without_an_allow_list() -> None:
    assert check_access(options(require_called_aet=True).rules(), "ECHO", "X", "10.1.2.3") is None
    assert check_access(options(require_called_aet=True).rules(), "X", "X", "10.1.2.3") is TurnedAway.CALLED_AE_TITLE
    assert check_access(options(require_called_aet=False).rules(), "X", "X", "10.1.2.3") is None


def test_without_rules_everybody_may_in() -> None:
    assert check_access((), "X", "Y", "203.0.113.1") is None


def test_codes_are_unique() -> None:
    assert len({reason.code for reason in TurnedAway}) == len(TurnedAway)


class Kept:
    """A ledger that only writes refusals, when it can."""

    def __init__(self) -> None:
        self.entries: list[CountedRefusal] = []
        self.away = False

    def refuse(self, refusals: Sequence[CountedRefusal], now: datetime) -> None:
        if self.away:
            raise TransientError("away")
        self.entries.extend(refusals)


def refusal(reason: str = "low_space") -> Refusal:
    return Refusal("object", reason, "text", Peer("PACS", "ECHO", "192.0.2.7"), status=0xA700)


def test_repetitions_become_one_entry_with_a_count() -> None:
    ledger, clock = Kept(), ManualClock()
    book = RefusalBook(ledger, clock, window_s=10)  # type: ignore[arg-type]  # one method of the ledger is asked
    book.note(refusal())
    assert book.flush() == 1
    for _ in range(5):
        clock.advance(1)
        book.note(refusal())
        assert book.flush() == 0
    book.note(refusal("other"))
    assert book.flush() == 1
    clock.advance(5)
    assert book.flush() == 1
    assert [(e.refusal.reason, e.count) for e in ledger.entries] == [("low_space", 1), ("other", 1), ("low_space", 5)]
    assert (ledger.entries[2].last_at - ledger.entries[2].first_at).total_seconds() == 4


def test_refusals_wait_for_the_database() -> None:
    ledger, clock = Kept(), ManualClock()
    book = RefusalBook(ledger, clock)  # type: ignore[arg-type]  # one method of the ledger is asked
    ledger.away = True
    book.note(refusal())
    with pytest.raises(TransientError):
        book.flush()
    book.note(refusal())
    ledger.away = False
    assert book.flush() == 1
    assert ledger.entries[0].count == 2


def test_the_book_is_bounded() -> None:
    ledger = Kept()
    book = RefusalBook(ledger, ManualClock())  # type: ignore[arg-type]  # one method of the ledger is asked
    for number in range(6000):
        book.note(refusal(f"r{number}"))
    while book.flush():
        pass
    assert len(ledger.entries) == 5000
