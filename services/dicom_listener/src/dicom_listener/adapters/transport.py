"""The TCP side below pynetdicom: TLS handshakes off the accepting thread; PDUs whole, in time, and not too long."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pynetdicom.transport import ThreadedAssociationServer

from dicom_listener.domain.access import TurnedAway
from dicom_listener.domain.wire import P_DATA_TF

log = logging.getLogger(__name__)

TurnAway = Callable[[TurnedAway, str, str], None]
"""(reason, network address, detail): a connection is closed before anybody said who they are."""

_PDU_TYPES = range(1, 8)
_MAX_CONTROL_PDU = 2**20  # an A-ASSOCIATE-RQ with 128 contexts of 30 transfer syntaxes has 260 KB
_HEADER = struct.Struct(">BBL")


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

    def handle_error(self, request: Any, client_address: Any) -> None:
        """To the log, not to standard error."""
        log.warning("connection failed while it was set up", exc_info=True)


def tls_words(error: OSError) -> str:
    """What went wrong, without anything that a peer could have chosen but its certificate's fault."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the sender's certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "no reason given").replace("_", " ").lower()
    return "timed out" if isinstance(error, TimeoutError) else type(error).__name__


class PduReader:
    """Takes the place of pynetdicom's `AssociationSocket.recv`, which reads 4 KiB at a time, any length, for ever.

    The upper layer asks for the 6 bytes of a PDU's header, then for its body.
    """

    def __init__(
        self, connection: Any, maximum_pdu_bytes: int, seconds: Callable[[], float], fail: Callable[[TurnedAway], None]
    ) -> None:
        self._connection = connection
        self._maximum = maximum_pdu_bytes
        self._seconds = seconds
        self._fail = fail
        self._type: int | None = None
        self._unread: bytearray | None = None
        self._buffer = bytearray()

    def unread(self, header: bytearray) -> None:
        """The next `recv` returns these bytes again."""
        self._unread, self._type = header, None

    def recv(self, count: int) -> bytearray:
        """`count` bytes, fewer if the peer closed; raises `OSError` if they do not come in time or are too many."""
        if self._type is None:
            if self._unread is not None:
                header, self._unread = self._unread, None
            else:
                header = self._read(bytearray(count))
            if len(header) == _HEADER.size and header[0] in _PDU_TYPES:
                self._type = header[0]
            elif header:
                self._fail(TurnedAway.PDU_INVALID)  # said now: what follows may be too short for another header
            return header
        self._check_length(count)
        return self._read(bytearray(count))

    def data(self, count: int) -> memoryview:
        """The body of a P-DATA-TF, in memory that the next one is read into. Raises `OSError` unless it comes whole."""
        self._check_length(count)
        if count > len(self._buffer):
            self._buffer = bytearray(count)
        view = memoryview(self._buffer)[:count]
        if self._fill(view) < count:
            raise ConnectionError("the peer closed inside a PDU")
        return view

    def _check_length(self, count: int) -> None:
        limit = self._maximum if self._type == P_DATA_TF else _MAX_CONTROL_PDU
        self._type = None
        if count > limit:
            self._fail(TurnedAway.PDU_TOO_LONG)
            self._connection.event_queue.put("Evt19")  # makes the state machine send an A-ABORT
            raise OSError("PDU too long")

    def _read(self, buffer: bytearray) -> bytearray:
        with memoryview(buffer) as view:
            got = self._fill(view)
        return buffer if got == len(buffer) else buffer[:got]

    def _fill(self, view: memoryview) -> int:
        """How many bytes there were to fill the view, all but at the end of the connection."""
        sock: socket.socket = self._connection.socket
        count, got = len(view), 0
        seconds = self._seconds()
        deadline = time.monotonic() + seconds
        if sock.gettimeout() != seconds:
            sock.settimeout(seconds)
        while got < count:
            try:
                received = sock.recv_into(view[got:] if got else view)
            except TimeoutError:
                self._fail(TurnedAway.STALLED)
                raise
            if not received:
                break
            got += received
            if got < count and time.monotonic() > deadline:
                self._fail(TurnedAway.STALLED)
                raise TimeoutError("a PDU took too long")
        return got
