#!/usr/bin/env python3
"""Writes the tables of docs/dicom-conformance.md from the listener's code; a test compares them.

Between `<!-- table: NAME -->` and `<!-- end -->` stands what the code says; everything else is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pydicom.uid import UID
from pynetdicom import ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts

from dicom_listener.adapters.dimse_archive import MODELS
from dicom_listener.adapters.scp import SERVICES
from dicom_listener.domain.access import TurnedAway
from dicom_listener.domain.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_listener.domain.refusals import Reason
from dicom_listener.domain.stow import NotTaken
from dicom_listener.settings import Settings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "dicom-conformance.md"
_LIMITS = (
    "maximum_associations maximum_associations_per_peer maximum_pdu_bytes maximum_object_bytes "
    "network_timeout_seconds request_timeout_seconds stow_maximum_bytes"
)


def _rows(head: str, rows: Sequence[tuple[str, ...]]) -> str:
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|" + "---|" * columns, *(f"| {' | '.join(row)} |" for row in rows)])


def services() -> str:
    """SOP classes that are no storage."""
    return _rows("SOP class | UID | role", [(UID(uid).name, f"`{uid}`", "SCP") for uid in SERVICES])


def fetching() -> str:
    """SOP classes of C-FIND and C-MOVE."""
    return _rows("SOP class | UID | role", [(UID(uid).name, f"`{uid}`", "SCU") for uid in MODELS])


def storage() -> str:
    """Storage SOP classes of the standard."""
    uids = [str(context.abstract_syntax) for context in AllStoragePresentationContexts]
    return _rows("SOP class | UID", [(UID(uid).name, f"`{uid}`") for uid in uids])


def transfer_syntaxes() -> str:
    """Transfer syntaxes that are taken, and any other that a sender proposes for a storage class."""
    return _rows("transfer syntax | UID", [(UID(uid).name, f"`{uid}`") for uid in ALL_TRANSFER_SYNTAXES])


def statuses() -> str:
    """Statuses of C-STORE responses."""
    rows = [("0000", "", "durable and indexed; a duplicate, too")]
    rows += [(f"{reason.status:04X}", f"`{reason.code}`", reason.text) for reason in Reason]
    return _rows("status | reason code | when", rows)


def rejections() -> str:
    """A-ASSOCIATE-RJ, and connections that end otherwise."""
    rows = [
        ("/".join(map(str, each.rejection)) if each.rejection else "ended", f"`{each.code}`", each.text)
        for each in TurnedAway
    ]
    return _rows("result/source/reason | reason code | when", rows)


def stow() -> str:
    """STOW-RS requests that are refused as a whole."""
    rows = [(str(each.status), f"`{each.code}`", each.text) for each in NotTaken]
    return _rows("HTTP status | reason code | when", rows)


def limits() -> str:
    """Limits and their settings."""
    fields = Settings.model_fields
    return _rows(
        "setting | default | meaning",
        [
            (f"`ECHO_{name.upper()}`", str(fields[name].default), fields[name].description or "")
            for name in _LIMITS.split()
        ],
    )


def implementation() -> str:
    """Names in the file meta information of stored objects."""
    return _rows(
        "what | value",
        [
            ("Implementation Class UID", f"`{IMPLEMENTATION_CLASS_UID}`"),
            ("Implementation Version Name", f"`{IMPLEMENTATION_VERSION_NAME}`"),
        ],
    )


TABLES: dict[str, Callable[[], str]] = {
    "services": services,
    "fetching": fetching,
    "storage": storage,
    "transfer_syntaxes": transfer_syntaxes,
    "statuses": statuses,
    "rejections": rejections,
    "stow": stow,
    "limits": limits,
    "implementation": implementation,
}


def filled(text: str) -> str:
    """The page with its tables written anew."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n\n{TABLES[match[1]]()}\n\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
