"""Normalising with a language model behind an OpenAI-compatible chat endpoint; its answer is never trusted.

**The report's text leaves this machine.** Nothing in the package uses this unless an endpoint is given by name. The key
is read from the environment and goes into one header only.

An answer is taken only when it is the asked-for JSON, when the finding extractor reads the same labels as in the
report, when every positive sentence of the report stands in it word for word, and when all else in it says only that
something is normal or absent. Otherwise the rules' result is used and the reason is kept in ``notes``.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from echo_model.data.normalise import (
    NormalisedReport,
    RuleNormaliser,
    label_changes,
    reads_normal,
    report_sentences,
)
from echo_model.data.regions import DEFAULTS, REGIONS
from echo_model.errors import EchoModelError
from echo_model.prompt import split_sentences

KEY_VARIABLE: Final = "ECHO_NORMALISER_API_KEY"
LARGEST_ANSWER: Final = 1_000_000
"""Bytes of an answer that are read at most."""

_WORD = re.compile(r"[^\W_]+")
_MEANINGS: Final = {
    "thorax": "thorax and soft tissues",
    "mediastinum": "mediastinum and trachea",
    "lungs": "lung fields, pneumothorax included",
    "heart": "cardiac silhouette",
    "hila": "hila",
    "pleura": "diaphragm and costophrenic angles, effusions included",
    "bones": "bones",
    "devices": "devices, tubes and lines",
}

INSTRUCTION: Final = (
    "You put the sentences of a chest radiograph report in order. Answer with one JSON object. Its keys are the "
    "regions "
    + "; ".join(f'"{region}" ({meaning})' for region, meaning in _MEANINGS.items())
    + ' and "impression"; each value is a list of sentences. Copy every sentence that tells of anything abnormal or of '
    "a device word for word, once, under its region. Say of every region that the report passes over that it is "
    "normal. "
    "Move sentences that only interpret, conclude or advise to the impression. Add nothing else, leave out history, "
    "technique and comparison."
)


class ChatError(EchoModelError):
    """The endpoint gave no usable answer; ``again`` says whether asking again may help. Holds no text of a report."""

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again


@dataclass(frozen=True)
class ChatEndpoint:
    """Where to ask. ``url``: up to and with ``/v1``; times in seconds; ``timeout`` bounds one attempt as a whole."""

    url: str
    model: str
    timeout: float = 60.0
    attempts: int = 3
    pause: float = 1.0

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise EchoModelError(f"{self.url!r} is no http or https address")
        if self.timeout <= 0 or self.attempts < 1 or self.pause < 0:
            raise EchoModelError("timeout must be above 0, attempts at least 1 and pause not negative")


def answer_schema() -> dict[str, Any]:
    """JSON schema of an answer."""
    sentences = {"type": "array", "items": {"type": "string"}}
    keys = [*REGIONS, "impression"]
    return {
        "type": "object",
        "properties": dict.fromkeys(keys, sentences),
        "required": keys,
        "additionalProperties": False,
    }


class ChatNormaliser:
    """Asks the endpoint and checks the answer; see the module. ``sleep`` is for tests."""

    def __init__(self, endpoint: ChatEndpoint, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.endpoint = endpoint
        self._rules = RuleNormaliser()
        self._sleep = sleep
        self._opener = urllib.request.build_opener(_NoRedirect)

    def normalise(self, report: str) -> NormalisedReport:
        """The checked answer, else the rules' result with the reason in ``notes``."""
        problems: tuple[str, ...] = ()
        for attempt in range(self.endpoint.attempts):
            if attempt:
                self._sleep(self.endpoint.pause * 2 ** (attempt - 1))
            try:
                answer = _read_answer(self._ask(report))
            except ChatError as error:
                problems = (str(error),)
                if not error.again:
                    break
                continue
            problems = answer_problems(report, answer)
            if not problems:
                return answer
        rules = self._rules.normalise(report)
        return NormalisedReport(rules.regions, rules.impression_sentences, notes=(*problems, *rules.notes))

    def _ask(self, report: str) -> bytes:
        body = {
            "model": self.endpoint.model,
            "temperature": 0,
            "messages": [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": report}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "normalised_report", "strict": True, "schema": answer_schema()},
            },
        }
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            self.endpoint.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        deadline = time.monotonic() + self.endpoint.timeout
        try:
            with self._opener.open(request, timeout=self.endpoint.timeout) as response:
                return _read_until(response, deadline)
        except urllib.error.HTTPError as error:
            error.close()
            again = error.code in (408, 429) or error.code >= 500
            raise ChatError(f"the endpoint answered {error.code}", again=again) from None
        except TimeoutError:
            raise ChatError(f"no answer within {self.endpoint.timeout:g} s", again=True) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None)
            if isinstance(reason, TimeoutError):
                raise ChatError(f"no answer within {self.endpoint.timeout:g} s", again=True) from None
            raise ChatError(f"the endpoint is not reached ({type(reason or error).__name__})", again=True) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the report and the key elsewhere: it counts as a wrong answer."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _read_until(response: Any, deadline: float) -> bytes:
    """The whole body; TimeoutError past the deadline, also when it comes drop by drop."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(65_536):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > LARGEST_ANSWER:
            raise ChatError("the answer is too large", again=False)
    return b"".join(parts)


def _read_answer(body: bytes) -> NormalisedReport:
    """The report in an answer's body. Raises ChatError."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
        answer = json.loads(content)
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise ChatError("the answer is not the asked-for JSON", again=True) from None
    if not isinstance(answer, dict) or answer.keys() != {*REGIONS, "impression"}:
        raise ChatError("the answer lacks a region or has one too many", again=True)
    if not all(isinstance(value, list) and all(isinstance(text, str) for text in value) for value in answer.values()):
        raise ChatError("the answer has something else than lists of sentences", again=True)
    sentences = {
        key: tuple(part for text in value for part in split_sentences(" ".join(text.split())))
        for key, value in answer.items()
    }
    return NormalisedReport({region: sentences[region] for region in REGIONS}, sentences["impression"], backend="chat")


def answer_problems(report: str, answer: NormalisedReport) -> tuple[str, ...]:
    """Why an answer cannot be used: labels, lost, altered or invented sentences, silent regions. Quotes no text."""
    problems = [f"labels differ: {change}" for change in label_changes(report, answer.text)]
    findings, summary = report_sentences(report)
    source = _plain(" ".join([*findings, *summary]))
    written = [*(text for region in REGIONS for text in answer.regions[region]), *answer.impression_sentences]
    whole = _plain(" ".join(written))
    if lost := sum(not reads_normal(text) and _plain(text) not in whole for text in [*findings, *summary]):
        problems.append(f"{lost} sentences of the report are missing or altered")
    if invented := sum(
        _plain(text) not in source and text not in DEFAULTS.values() and not reads_normal(text) for text in written
    ):
        problems.append(f"{invented} sentences stand in no report")
    if silent := [region for region in REGIONS if not answer.regions[region]]:
        problems.append(f"nothing is said of: {', '.join(silent)}")
    return tuple(problems)


def _plain(text: str) -> str:
    """Words alone, so that capitals, blanks and stops make no difference."""
    return f" {' '.join(_WORD.findall(text.lower()))} "
