"""A Kafka that cannot be used: the text names the setting to look at, and no secret."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kafka.errors import (
    InvalidReplicationFactorError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    SaslAuthenticationFailedError,
    TopicAuthorizationFailedError,
)

from pipeline.errors import BusUnavailable
from pipeline.kafka_bus import KafkaBus
from pipeline.kafka_client import addresses, common_options, explain
from pipeline.settings import BusSettings


def settings(url: str = "kafka://127.0.0.1:1", **values: object) -> BusSettings:
    return BusSettings.model_validate({"bus_url": url, "kafka_password": "hunter2", "kafka_username": "echo"} | values)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for servers that are threads of this process."""
    monkeypatch.setattr("pipeline.kafka_client._KNOCK_S", 60.0)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def tls_port(tmp_path: Path) -> Iterator[int]:
    """A port that speaks TLS with a certificate of its own making."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "server.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_refuse_handshakes, args=(server, context), daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def _refuse_handshakes(server: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            try:
                context.wrap_socket(connection, server_side=True).close()
            except OSError:
                continue  # the client does not trust the certificate, which is what the test is about


def test_addresses_of_several_brokers() -> None:
    assert addresses(settings("kafka://a:1,b:2,c")) == ["a:1", "b:2", "c:9092"]


def test_options_follow_the_security_settings() -> None:
    plain = common_options(settings())
    assert plain["reconnect_backoff_max_ms"] == 500
    assert "sasl_mechanism" not in plain
    login = common_options(settings(kafka_security_protocol="SASL_SSL"))
    assert login["sasl_plain_password"] == "hunter2"
    assert isinstance(login["ssl_context"], ssl.SSLContext)


def test_a_ca_file_that_cannot_be_read_is_named() -> None:
    with pytest.raises(BusUnavailable, match="ECHO_KAFKA_CA_FILE"):
        common_options(settings(kafka_security_protocol="SSL", kafka_ca_file="/does/not/exist"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SaslAuthenticationFailedError(), "ECHO_KAFKA_PASSWORD"),
        (TopicAuthorizationFailedError(), "'echo' lacks a right"),
        (MessageSizeTooLargeError(), "max.message.bytes"),
        (InvalidReplicationFactorError(), "ECHO_BUS_REPLICATION"),
        (KafkaTimeoutError(), "ECHO_BUS_URL"),
    ],
)
def test_errors_name_what_to_look_at(error: Exception, words: str) -> None:
    text = explain(error, settings())
    assert words in text
    assert "hunter2" not in text


def test_a_closed_port_is_said_at_once() -> None:
    bus = KafkaBus(settings())
    for use in (bus.ping, lambda: bus.consumer("group", ["a"]).poll(0.1)):
        with pytest.raises(BusUnavailable, match=r"nothing answers at 127\.0\.0\.1:1: check ECHO_BUS_URL"):
            use()


def test_an_untrusted_certificate_names_the_ca_file(tls_port: int) -> None:
    text = explain(KafkaTimeoutError(), settings(f"kafka://127.0.0.1:{tls_port}", kafka_security_protocol="SSL"))
    assert "is not trusted" in text
    assert "ECHO_KAFKA_CA_FILE" in text


def test_a_refused_login_names_the_credentials(silent_port: int) -> None:
    """The library reports a wrong password as a time-out only."""
    login = settings(f"kafka://127.0.0.1:{silent_port}", kafka_security_protocol="SASL_PLAINTEXT")
    assert "ECHO_KAFKA_USERNAME" in explain(KafkaTimeoutError(), login)


def test_a_server_without_tls_names_the_protocol() -> None:
    def hang_up(server: socket.socket) -> None:
        connection, _ = server.accept()
        connection.recv(1)
        connection.sendall(b"not TLS at all, for sure")
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=hang_up, args=(server,), daemon=True)
        thread.start()
        text = explain(KafkaTimeoutError(), settings(f"kafka://127.0.0.1:{port}", kafka_security_protocol="SSL"))
        thread.join(timeout=60)
    assert "ECHO_KAFKA_SECURITY_PROTOCOL=SSL" in text
