"""Messages between the listener and one of its receiving processes: told without an answer, or asked."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

from pipeline.database import is_transient
from pipeline.errors import TransientError

log = logging.getLogger(__name__)

_TELL, _ASK, _ANSWER = range(3)
_Message = tuple[Any, ...]


class ChannelClosed(TransientError):
    """The other process is gone."""

    def __init__(self) -> None:
        super().__init__("the other process is gone")


class Channel:
    """One end. Thread-safe; messages are handled in the order in which they were sent, by the thread of `run`.

    One thread at a time sends, for all: none waits for another whose long message the other process does not read.

    `handlers` are called by name with what was told or asked. What one returns is the answer; a `Future` answers later,
    so that a slow one does not hold up the others. Only ends of one program may be connected: messages are pickled.
    """

    def __init__(self, connection: Connection[Any, Any], handlers: Mapping[str, Callable[..., Any]]) -> None:
        self._connection = connection
        self._handlers = handlers
        self._sending = threading.Lock()
        self._lock = threading.Lock()  # of what follows; held for moments only
        self._untold: list[_Message] = []
        self._numbers = itertools.count()
        self._asked: dict[int, Future[Any]] = {}
        self._closed = False

    def tell(self, name: str, *arguments: Any, soon: bool = False) -> None:
        """Without an answer, sent with the next message or by `flush` unless `soon`; lost if nobody hears."""
        self._add((_TELL, name, arguments))
        if soon:
            self.flush()

    def flush(self) -> None:
        """Send what was told and not sent; what another thread is sending already, it sends to the end."""
        while self._untold and self._sending.acquire(blocking=False):
            try:
                with self._lock:
                    messages, self._untold = self._untold, []
                if messages and not self._closed:
                    self._connection.send(messages)
            except OSError:
                log.debug("nobody hears", exc_info=True)  # `run` notices, too
            finally:
                self._sending.release()

    def ask(self, name: str, *arguments: Any, timeout: float | None = None) -> Any:
        """The answer.

        Raises `TransientError` (a subclass, `ChannelClosed`, if the other process is gone), `TimeoutError`, or
        `RuntimeError` for what else went wrong there.
        """
        number = next(self._numbers)
        answer: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise ChannelClosed
            self._asked[number] = answer
            self._untold.append((_ASK, name, arguments, number))
        self.flush()
        try:
            return answer.result(timeout)
        finally:
            self._asked.pop(number, None)

    def run(self) -> None:
        """Handle what comes until the other process is gone; what was asked and not answered then fails."""
        try:
            while True:
                for message in self._connection.recv():
                    self._handle(message)
        except (EOFError, OSError):
            pass
        finally:
            with self._lock:
                self._closed = True
            with self._sending:  # which has failed by now, if it waited for the other process to read
                self._connection.close()
            for answer in list(self._asked.values()):
                _fail(answer, ChannelClosed())

    def _add(self, message: _Message) -> None:
        with self._lock:
            self._untold.append(message)

    def _handle(self, message: _Message) -> None:
        if message[0] == _ANSWER:
            _, number, value, error = message
            answer = self._asked.get(number)
            if answer is not None:
                _settle(answer, value, error)
            return
        kind, name, arguments, *number = message
        try:
            value = self._handlers[name](*arguments)
        except Exception as error:
            if kind == _TELL:
                log.exception("a message could not be handled", extra={"what": name})
            else:
                self._answer(number[0], None, error)
            return
        if kind == _TELL:
            return
        if isinstance(value, Future):
            value.add_done_callback(lambda done: self._answer_later(number[0], done))
        else:
            self._answer(number[0], value, None)

    def _answer_later(self, number: int, outcome: Future[Any]) -> None:
        error = outcome.exception()
        self._answer(number, outcome.result() if error is None else None, error)

    def _answer(self, number: int, value: Any, error: BaseException | None) -> None:
        """It is raised where the question came from."""
        told = None if error is None else (is_transient(error), f"{type(error).__name__}: {error}")
        self._add((_ANSWER, number, value, told))
        self.flush()


def _settle(answer: Future[Any], value: Any, error: tuple[bool, str] | None) -> None:
    if error is None:
        answer.set_result(value)
    else:
        transient, text = error
        answer.set_exception(TransientError(text) if transient else RuntimeError(text))


def _fail(answer: Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
