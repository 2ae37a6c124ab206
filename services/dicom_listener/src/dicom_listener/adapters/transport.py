"""The TCP side below pynetdicom: TLS handshakes off the accepting thread; PDUs whole, in time, and not too long."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pynetdicom import evt
from pynetdicom.transport import ThreadedAssociationServer

from dicom_listener.domain.access import TurnedAway
from dicom_listener.domain.wire import P_DATA_TF

log = logging.getLogger(__name__)

TurnAway = Callable[[TurnedAway, str, str], None]
"""(reason, network address, detail): a connection is closed before anybody said who they are."""

_PDU_TYPES = range(1, 8)
_MAX_CONTROL_PDU = 2**20  # an A-ASSOCIATE-RQ with 128 contexts of 30 transfer syntaxes has 260 KB
_HEADER = struct.Struct(">BBL")
_READ_AHEAD = 2**20  # bytes; a quarter of it costs a third more processor time, four times as much does, too


@dataclass(frozen=True)
class TlsFiles:
    """PEM files. With `client_ca_file` senders must show a certificate that one of its authorities signed."""

    certificate_file: str
    key_file: str
    client_ca_file: str | None = None


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS as the "BCP 195 RFC 8996, 9325" profile of PS3.15 wants it: 1.2 and 1.3, forward secrecy, AEAD ciphers only.

    Raises `OSError` (`ssl.SSLError` is one) when the files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM")
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.load_cert_chain(files.certificate_file, files.key_file)
    if files.client_ca_file is not None:
        context.load_verify_locations(files.client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Server(ThreadedAssociationServer):
    """Accepts connections. `configure` must be called before the first one."""

    request_queue_size = 128
    daemon_threads = True

    def configure(
        self, tls: ssl.SSLContext | None, handshake_seconds: float, room: Callable[[], int], turn_away: TurnAway
    ) -> None:
        """`room()`: how many more connections may be open."""
        self._tls = tls
        self._handshake_seconds = handshake_seconds
        self._room = room
        self._turn_away = turn_away
        self._handshakes = 0
        self._handshake_lock = threading.Lock()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Close at once what is too much: each connection costs two threads."""
        if self._room() - self._handshakes > 0:
            return True
        self._turn_away(TurnedAway.TOO_MANY_CONNECTIONS, str(client_address[0]), "")
        return False

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In a thread of the connection's own: a slow handshake holds up nobody else."""
        if self._tls is not None:
            with self._handshake_lock:
                self._handshakes += 1
            try:
                request.settimeout(self._handshake_seconds)
                request = self._tls.wrap_socket(request, server_side=True)
            except OSError as error:
                self._turn_away(TurnedAway.TLS_FAILED, str(client_address[0]), tls_words(error))
                self.shutdown_request(request)
                return
            finally:
                with self._handshake_lock:
                    self._handshakes -= 1
        super().process_request_thread(request, client_address)

    def service_actions(self) -> None:
        """The library collects garbage here, every few seconds, which holds up everything; it is collected anyway."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """To the log, not to standard error."""
        log.warning("connection failed while it was set up", exc_info=True)


class HandedServer(Server):
    """Serves connections that another process has accepted. Each has a number there, which its association bears."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._thread = threading.local()
        self.gone: Callable[[int], None] = lambda _: None
        """Called with the number of a connection that ended before there was an association."""

    def server_bind(self) -> None:
        """There is no port."""

    def server_activate(self) -> None:
        """There is no port."""

    def take(self, number: int, connection: socket.socket, address: Any) -> None:
        """Serve it in a thread of its own."""
        arguments = (number, connection, address)
        threading.Thread(target=self._serve, args=arguments, name=f"connection-{number}", daemon=True).start()

    def claim(self, assoc: Any) -> None:
        """Called in the connection's thread, once the association is there."""
        assoc.number = self._thread.number
        self._thread.claimed_by = assoc

    def _serve(self, number: int, connection: socket.socket, address: Any) -> None:
        self._thread.number, self._thread.claimed_by = number, None
        self.process_request_thread(connection, address)
        assoc = self._thread.claimed_by
        if assoc is None or assoc.ident is None:  # its thread was never started
            self.gone(number)

    def shutdown(self) -> None:
        """Nothing is accepted here."""
        self.server_close()


class Requested:
    """The associations that this process has asked others for, so that a stop need not wait for answers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[Any] = set()
        self._interrupted = False

    @contextlib.contextmanager
    def one(self) -> Iterator[list[Any]]:
        """Event handlers for `AE.associate`. At the end its connection is closed, which the library leaves open when
        the peer is the first to go.
        """
        with contextlib.ExitStack() as end:

            def opened(event: Any) -> None:
                assoc = event.assoc
                end.callback(assoc.dul.socket.socket.close)
                with self._lock:
                    self._open.add(assoc)
                    end.callback(self._forget, assoc)
                    interrupted = self._interrupted
                if interrupted:
                    shut(assoc)

            yield [(evt.EVT_CONN_OPEN, opened)]

    def _forget(self, assoc: Any) -> None:
        with self._lock:
            self._open.discard(assoc)

    def interrupt(self) -> None:
        """Cut off those there are, and those to come.

        Whoever waits for an answer hears at once of a connection that is gone, but not of an abort by another thread.
        """
        with self._lock:
            self._interrupted = True
            still_open = list(self._open)
        for assoc in still_open:
            shut(assoc)


def shut(assoc: Any) -> None:
    """End the connection under an association whose reader may be blocked."""
    sock = assoc.dul.socket.socket
    if sock is not None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            log.debug("connection was closed already", extra={"error": error.errno})


def tls_words(error: OSError) -> str:
    """What went wrong, without anything that a peer could have chosen but its certificate's fault."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the sender's certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "no reason given").replace("_", " ").lower()
    return "timed out" if isinstance(error, TimeoutError) else type(error).__name__


class PduReader:
    """Takes the place of pynetdicom's `AssociationSocket.recv`, which reads 4 KiB at a time, any length, for ever.

    The upper layer asks for the 6 bytes of a PDU's header, then for its body. While data are transferred, `read_ahead`
    takes what has come, PDUs whole or not, in one call, and `next_data` gives out what is whole.
    """

    def __init__(
        self, connection: Any, maximum_pdu_bytes: int, seconds: Callable[[], float], fail: Callable[[TurnedAway], None]
    ) -> None:
        self._connection = connection
        self._maximum = maximum_pdu_bytes
        self._seconds = seconds
        self._fail = fail
        self._type: int | None = None
        self._buffer = bytearray()
        self._view = memoryview(self._buffer)
        self._start = self._end = 0  # of what was read ahead
        self._begun_at: float | None = None  # when the first byte of an unfinished PDU was there

    @property
    def holds_bytes(self) -> bool:
        """Whether something was read ahead and not given out."""
        return self._end > self._start

    def recv(self, count: int) -> bytearray:
        """`count` bytes, fewer if the peer closed; raises `OSError` if they do not come in time or are too many."""
        if self._type is None:
            header = self._read(bytearray(count))
            if len(header) == _HEADER.size:
                self._note_type(header[0])
            elif header:
                self._fail(TurnedAway.PDU_INVALID)  # said now: what follows may be too short for another header
            return header
        self._check_length(self._type, count)
        self._type = None
        return self._read(bytearray(count))

    def next_data(self) -> memoryview | None:
        """The body of the next PDU, if it is a P-DATA-TF that has come whole; valid until `read_ahead`.

        None: something else comes next, or more must be read. Raises `OSError` if the PDU is too long.
        """
        start, end = self._start, self._end
        if end - start < _HEADER.size or self._view[start] != P_DATA_TF:
            return None
        length = int.from_bytes(self._view[start + 2 : start + 6], "big")
        self._check_length(P_DATA_TF, length)
        body = start + _HEADER.size
        if end - body < length:
            return None
        self._start = body + length
        self._begun_at = None
        return self._view[body : self._start]

    @property
    def has_other(self) -> bool:
        """Whether the next PDU, whose header has come, is no P-DATA-TF: the library is to read it."""
        return self._end - self._start >= _HEADER.size and self._view[self._start] != P_DATA_TF

    def read_ahead(self) -> bool:
        """Wait for the peer, take what comes; false if it has closed. Raises `OSError` if a PDU takes too long."""
        if not self._buffer:
            self._buffer = bytearray(_HEADER.size + self._maximum + _READ_AHEAD)
            self._view = memoryview(self._buffer)
        if self._start == self._end:
            self._start = self._end = 0
        elif len(self._buffer) - self._start < _HEADER.size + self._maximum:  # the PDU under way may not fit
            rest = bytes(self._view[self._start : self._end])
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        now = time.monotonic()
        if self._begun_at is None:
            self._begun_at = now
        elif now > self._begun_at + self._seconds():
            self._fail(TurnedAway.STALLED)
            raise TimeoutError("a PDU took too long")
        received = self._receive(self._view[self._end :])
        self._end += received
        return bool(received)

    def _note_type(self, pdu_type: int) -> None:
        if pdu_type in _PDU_TYPES:
            self._type = pdu_type
        else:
            self._fail(TurnedAway.PDU_INVALID)

    def _check_length(self, pdu_type: int, count: int) -> None:
        if count > (self._maximum if pdu_type == P_DATA_TF else _MAX_CONTROL_PDU):
            self._type = None
            self._fail(TurnedAway.PDU_TOO_LONG)
            self._connection.event_queue.put("Evt19")  # makes the state machine send an A-ABORT
            raise OSError("PDU too long")

    def _read(self, buffer: bytearray) -> bytearray:
        """As many bytes as the buffer has, fewer only at the end of the connection; what was read ahead comes first."""
        count = len(buffer)
        got = min(count, self._end - self._start)
        buffer[:got] = self._view[self._start : self._start + got]
        self._start += got
        self._begun_at = None
        deadline = time.monotonic() + self._seconds()
        with memoryview(buffer) as view:
            while got < count:
                received = self._receive(view[got:])
                if not received:
                    break
                got += received
                if got < count and time.monotonic() > deadline:
                    self._fail(TurnedAway.STALLED)
                    raise TimeoutError("a PDU took too long")
        return buffer if got == count else buffer[:got]

    def _receive(self, view: memoryview) -> int:
        sock: socket.socket = self._connection.socket
        seconds = self._seconds()
        if sock.gettimeout() != seconds:
            sock.settimeout(seconds)
        try:
            return sock.recv_into(view)
        except TimeoutError:
            self._fail(TurnedAway.STALLED)
            raise
