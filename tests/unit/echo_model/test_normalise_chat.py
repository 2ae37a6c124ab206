"""The chat endpoint behind the normaliser: a real HTTP server that answers well, badly, slowly and not at all."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from echo_model.cli import main
from echo_model.corpora.convert import Plan, convert_corpus
from echo_model.corpora.entry import read_index
from echo_model.data.normalise import RuleNormaliser
from echo_model.data.normalise_chat import (
    KEY_VARIABLE,
    LARGEST_ANSWER,
    ChatEndpoint,
    ChatNormaliser,
    answer_schema,
)
from echo_model.data.regions import DEFAULTS, REGIONS
from echo_model.errors import EchoModelError
from unit.echo_model import corpus_trees
from unit.echo_model.report_tables import raw_reports

REPORT = "FINDINGS: Small left pleural effusion. Hiatal hernia. IMPRESSION: Left effusion."
SECRET = "not-a-real-key-0451"  # made up
Answer = Callable[["Handler"], None]


class Server(ThreadingHTTPServer):
    """Answers with the next of ``answers``, the last one again and again; keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        answers = self.server.answers
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing to standard error."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def _normaliser(server: Server, **options: Any) -> ChatNormaliser:
    return ChatNormaliser(ChatEndpoint(server.url, "some-model", **({"timeout": 60.0, "pause": 0.0} | options)))


def _content(**changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {region: [DEFAULTS[region]] for region in REGIONS}
    good |= {"mediastinum": ["Hiatal hernia."], "pleura": ["Small left pleural effusion."]}
    return good | {"impression": ["Left effusion."]} | changes


def _says(content: Any) -> Answer:
    text = content if isinstance(content, str) else json.dumps(content)
    body = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
    return lambda handler: handler.send(200, body)


def _fails(status: int) -> Answer:
    return lambda handler: handler.send(status, b"{}")


def test_a_good_answer_is_taken(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    server.answers = [_says(_content())]
    result = _normaliser(server).normalise(REPORT)
    assert (result.backend, result.notes) == ("chat", ())
    assert result.regions["pleura"] == ("Small left pleural effusion.",)
    assert result.impression == "Left effusion."
    ((path, headers, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert body["model"] == "some-model"
    assert body["response_format"]["json_schema"]["schema"] == answer_schema()
    assert body["messages"][1]["content"] == REPORT


def test_without_a_key_no_header_is_sent(server: Server) -> None:
    server.answers = [_says(_content())]
    _normaliser(server).normalise(REPORT)
    assert "Authorization" not in server.asked[0][1]


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (_content(pleura=[DEFAULTS["pleura"]]), "sentences of the report are missing"),
        (
            _content(pleura=["Small right pleural effusion."], impression=["Effusion."]),
            "labels differ: pleural_effusion",
        ),
        (_content(pleura=["A tiny left pleural effusion."]), "1 sentences of the report are missing or altered"),
        (_content(mediastinum=[DEFAULTS["mediastinum"]]), "1 sentences of the report are missing or altered"),
        (_content(lungs=["Right upper lobe nodule."]), "labels differ: nodule: invented (present)"),
        (_content(thorax=["Severe pectus deformity."]), "1 sentences stand in no report"),
        (_content(hila=[]), "nothing is said of: hila"),
    ],
)
def test_an_answer_that_fails_the_check_is_replaced_by_the_rules(server: Server, content: Any, note: str) -> None:
    server.answers = [_says(content)]
    result = _normaliser(server).normalise(REPORT)
    rules = RuleNormaliser().normalise(REPORT)
    assert (result.backend, result.text) == ("rules", rules.text)
    assert any(note in told for told in result.notes), result.notes
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    "answer",
    [
        lambda handler: handler.send(200, b"<html>busy</html>"),
        lambda handler: handler.send(200, b'{"choices": []}'),
        lambda handler: handler.send(200, b'["x"]'),
        _says("Here is your report: {"),
        _says("[" * 100_000),
        _says(["a list"]),
        _says({"lungs": ["Clear."]}),
        _says(_content(extra=["x"])),
        _says(_content(lungs="Clear.")),
        _says(_content(lungs=[1])),
    ],
)
def test_an_answer_of_another_form_is_asked_again_then_given_up(server: Server, answer: Answer) -> None:
    server.answers = [answer]
    result = _normaliser(server).normalise(REPORT)
    assert result.backend == "rules"
    assert result.notes[0].startswith("the answer ")
    assert len(server.asked) == 3


@pytest.mark.parametrize("bad", [_fails(500), _fails(429), _says("{"), _says(_content(hila=[]))])
def test_what_passes_is_asked_again(server: Server, bad: Answer) -> None:
    server.answers = [bad, _says(_content())]
    waited: list[float] = []
    endpoint = ChatEndpoint(server.url, "m", pause=0.5)
    assert ChatNormaliser(endpoint, sleep=waited.append).normalise(REPORT).backend == "chat"
    assert waited == [0.5]
    assert len(server.asked) == 2


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_asked_again(server: Server, status: int) -> None:
    server.answers = [_fails(status)]
    result = _normaliser(server).normalise(REPORT)
    assert (result.backend, result.notes) == ("rules", (f"the endpoint answered {status}",))
    assert len(server.asked) == 1


def test_a_redirect_takes_neither_report_nor_key_elsewhere(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    server.answers = [lambda handler: handler.send(302, b"", Location=f"{server.url}/elsewhere")]
    assert _normaliser(server).normalise(REPORT).notes == ("the endpoint answered 302",)
    assert len(server.asked) == 1


def test_silence_ends_at_the_time_limit(server: Server) -> None:
    server.answers = [lambda handler: server.over.wait() and None]
    result = _normaliser(server, timeout=0.2, attempts=2).normalise(REPORT)
    assert (result.backend, result.notes) == ("rules", ("no answer within 0.2 s",))
    deadline = time.monotonic() + 120
    while len(server.asked) < 2 and time.monotonic() < deadline:  # its threads may read a question later than that
        time.sleep(0.01)
    assert len(server.asked) == 2


def test_an_answer_drop_by_drop_ends_at_the_time_limit(server: Server) -> None:
    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**6))
        handler.end_headers()
        while not server.over.wait(0.05):
            try:
                handler.wfile.write(b" ")
            except OSError:
                return

    server.answers = [drip]
    result = _normaliser(server, timeout=0.3, attempts=1).normalise(REPORT)
    assert result.notes == ("no answer within 0.3 s",)  # the whole of it would take half a day


def test_a_flood_is_cut_off(server: Server) -> None:
    server.answers = [lambda handler: handler.send(200, b" " * (LARGEST_ANSWER + 1))]
    assert _normaliser(server).normalise(REPORT).notes == ("the answer is too large",)


def test_a_connection_that_breaks_off(server: Server) -> None:
    server.answers = [lambda handler: handler.connection.shutdown(socket.SHUT_RDWR)]
    result = _normaliser(server, attempts=2).normalise(REPORT)
    assert result.backend == "rules"
    assert "is not reached" in result.notes[0]


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = ChatEndpoint(f"http://127.0.0.1:{free.getsockname()[1]}/v1", "m", timeout=60, pause=0)
        result = ChatNormaliser(endpoint).normalise(REPORT)
    assert (result.backend, result.notes) == ("rules", ("the endpoint is not reached (ConnectionRefusedError)",))


def test_the_key_and_the_report_stand_in_no_log_and_no_note(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    caplog.set_level(logging.DEBUG)
    server.answers = [_fails(500), _says("{"), _says(_content(thorax=["Severe pectus deformity."]))]
    result = _normaliser(server).normalise(REPORT)
    captured = capfd.readouterr()
    told = "".join([*result.notes, caplog.text, captured.out, captured.err, repr(_normaliser(server).endpoint)])
    assert SECRET not in told
    assert "Hiatal" not in told


def test_the_command_asks_the_endpoint_and_says_so(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus_trees.plain(tmp_path / "root", [{"report": REPORT}])
    convert_corpus("csv", tmp_path / "root", tmp_path / "corpus", Plan())
    arguments = ["corpus", "normalise", str(tmp_path / "corpus"), "--out", str(tmp_path / "new")]
    arguments += ["--endpoint", server.url, "--chat-model", "m"]
    server.answers = [_says(_content())]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out == "1 reports: 1 by the endpoint\n"
    assert captured.err == "The text of every report is sent to the endpoint.\n"
    ((entry,), _) = read_index(tmp_path / "new")
    assert entry.report.endswith("Impression: Left effusion.")
    server.answers = [_fails(400)]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out == "1 reports: 1 by the rules\n"
    assert "index.jsonl, line 1: the endpoint answered 400" in captured.err


def test_an_answer_made_of_the_rules_passes_for_most_reports(server: Server) -> None:
    """The check is no bar to a right answer: what the rules write would be taken, but for sentences of two regions."""
    taken = 0
    reports = raw_reports()[::6]
    for report, _ in reports:
        rules = RuleNormaliser().normalise(report)
        server.answers = [_says({**rules.regions, "impression": rules.impression_sentences})]
        taken += _normaliser(server, attempts=1).normalise(report).backend == "chat"
    assert taken >= 0.8 * len(reports)


@pytest.mark.parametrize(
    ("url", "options"),
    [("ftp://x", {}), ("x", {}), ("http://", {}), ("http://x", {"timeout": 0}), ("http://x", {"attempts": 0})],
)
def test_a_wrong_endpoint_is_refused(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(EchoModelError):
        ChatEndpoint(url, "m", **options)
