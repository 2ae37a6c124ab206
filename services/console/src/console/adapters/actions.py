"""Asks the other services to do what a person decided. Without their addresses the console only shows."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import httpx

from console.domain.actions import Action, Doer, actions_of
from console.domain.facts import Fact
from pipeline.telemetry import study_ref

log = logging.getLogger(__name__)


class NotDone(Exception):
    """The service said no, or did not answer; the text is for people."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Actions:
    """`urls`: base address of each service that may be asked."""

    def __init__(self, urls: Mapping[Doer, str | None], client: httpx.Client | None = None) -> None:
        self._urls = {by: url.rstrip("/") for by, url in urls.items() if url}
        # Connections are not kept: a service may end an idle one in the moment in which it is used again.
        self._client = client or httpx.Client(timeout=10.0, limits=httpx.Limits(max_keepalive_connections=0))

    def of(self, facts: Collection[Fact]) -> list[Action]:
        """Those that can be asked for from here."""
        return [action for action in actions_of(facts) if action.by in self._urls]

    def do(self, facts: Collection[Fact], name: str) -> None:
        """Do it now. Raises `NotDone`."""
        action = next((action for action in self.of(facts) if action.name == name), None)
        if action is None:
            raise NotDone(409, "This cannot be done about the study now; it may have been done already.")
        try:
            answer = self._client.post(self._urls[action.by] + action.path)
        except httpx.HTTPError as error:
            raise NotDone(503, f"The {action.by.replace('_', ' ')} does not answer; try again.") from error
        log.info("action", extra={"action": name, "study": study_ref(next(iter(facts)).study_instance_uid)})
        if answer.status_code in (404, 409):
            raise NotDone(409, f"The {action.by.replace('_', ' ')} says: {_title(answer)}.")
        if answer.status_code >= 300:
            raise NotDone(503, f"The {action.by.replace('_', ' ')} could not do it; try again.")

    def close(self) -> None:
        """Close connections."""
        self._client.close()


def _title(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["title"])
    except (ValueError, KeyError, TypeError):
        return "it cannot be done"
